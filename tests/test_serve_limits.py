"""What the server does not put up with, in OpenAI's shape, and that it goes on afterwards."""

import contextlib
import json
import socket
import time

import httpx
import openai
import pytest
from serving import CHAT, COMPLETION, LONG, assert_error, last_event, story_server, wait_for

from t3d.serve import bind


@pytest.fixture(scope="module")
def server():
    with story_server(max_batch_size=2, max_waiting=2, read_timeout=1.0, max_body_mib=0.25, endless=True) as running:
        yield running


def raw(server, data, seconds=10):
    """What comes back for these bytes until the server closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        told = b""
        while part := connection.recv(2**16):
            told += part
    return told


def trickle(connection, data):
    """Send byte by byte."""
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


class Slow:
    """Requests that run until they are left."""

    def __init__(self, server, count, **fields):
        self._server = server
        self._streams = [server.http.stream("POST", "/v1/completions", json={**LONG, **fields}) for _ in range(count)]

    def __enter__(self):
        for stream in self._streams:
            stream.__enter__()
        return self

    def __exit__(self, *error):
        for stream in self._streams:
            stream.__exit__(None, None, None)


def test_wrong_paths_and_methods(server):
    assert_error(server.http.get("/v1/nothing"), 404, "there is nothing at /v1/nothing")
    assert_error(server.http.get("/v1/completions"), 405, "GET is not for /v1/completions")
    assert_error(server.http.get("/v1/models/gpt"), 404, "not served here", code="model_not_found")
    assert_error(server.http.get("/docs"), 404, "nothing at /docs")
    assert_error(server.http.get("/a%0Ab"), 404, r"nothing at /a\nb:")
    assert_error(server.http.get("/nothing", headers={"Host": "["}), 404, "nothing at /nothing")


def test_bodies_that_are_wrong(server):
    post = server.http.post
    assert_error(post("/v1/completions", content=b"{}"), 415, "send Content-Type: application/json")
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert_error(post("/v1/completions", content=b"{", headers=headers), 400, "not valid JSON", code="invalid_json")
    assert_error(post("/v1/completions", content=b"\xff", headers=headers), 400, "not valid JSON")
    packed = server.post(COMPLETION, headers={"Content-Encoding": "gzip"})
    assert_error(packed, 415, "leave Content-Encoding out", code="unsupported_media_type")
    assert server.post(COMPLETION, headers={"Content-Encoding": "identity"}).status_code == 200
    assert_error(server.post({"model": "story-mini"}), 400, "prompt is missing", param="prompt")
    assert_error(server.post({**CHAT, "n": -1}, "/v1/chat/completions"), 400, "n: input should be", param="n")


def test_bodies_that_are_too_large(server):
    big = {**COMPLETION, "prompt": "x" * 10_000_000}
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert_error(server.post(big, path), 413, "larger than 262,144 bytes", code="body_too_large")

    def without_length():
        for _ in range(100):
            yield b"x" * 2**14

    headers = {"Content-Type": "application/json"}
    response = server.http.post("/v1/completions", content=without_length(), headers=headers)
    assert_error(response, 413, "larger than 262,144 bytes")
    assert server.post(COMPLETION).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    status, _, body = raw(server, head).partition(b"\r\n")
    assert status == b"HTTP/1.1 408 Request Timeout"
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


@pytest.mark.parametrize("head", [b"", b"G", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_header_that_does_not_come_is_not_waited_for(server, head):
    with contextlib.suppress(ConnectionResetError):
        assert raw(server, head) == b""


def test_a_header_that_comes_byte_by_byte_is_not_waited_for(server):
    host, port = server.url.removeprefix("http://").split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as connection, pytest.raises(OSError):
        trickle(connection, b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 1000)
    assert time.monotonic() - started < 20


def test_what_is_no_http_is_called_so(server):
    status, _, body = raw(server, b"\x16\x03\x01 nonsense\r\n\r\n").partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert json.loads(body.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_who_does_not_read_is_cut_off_and_holds_nothing():
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = json.dumps({**LONG, "n": 4, "stream": True, "return_trajectory": True, "logprobs": 0}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with story_server(endless=True, listener=listener, read_timeout=0.5) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(listener.getsockname())
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_for(lambda: server.num_open() == 4)
        wait_for(lambda: server.num_open() == 0, 30)
        server.wait_until_idle()
        assert server.metric('t3d_requests_total{endpoint="completions",model="story-mini",status="499"}') == 1
        assert server.metric('t3d_completion_tokens_total{model="story-mini"}') == 0  # no answer was completed


def test_who_reads_slowly_but_steadily_gets_everything():
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fields = {"n": 2, "steps_per_block": 1, "return_trajectory": True, "logprobs": 0}
    body = json.dumps({**LONG, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json"
    with story_server(endless=True, listener=listener, read_timeout=0.5), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(listener.getsockname())
        connection.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        told = b""
        while part := connection.recv(2**13):
            told += part
            time.sleep(0.03)
    answer = json.loads(told.partition(b"\r\n\r\n")[2])
    assert [len(choice["trajectory"]["token_ids"]) for choice in answer["choices"]] == [900] * 2


def test_a_stream_that_waits_says_so(monkeypatch):
    monkeypatch.setattr("t3d.serve.service.SILENT_SECONDS", 0.02)
    asked = {**COMPLETION, "stream": True}
    with (
        story_server(endless=True, max_batch_size=1) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client,
    ):
        with Slow(server, 1, stream=True, n=4):
            with server.http.stream("POST", "/v1/completions", json=asked) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                assert [next(lines) for _ in range(4)] == ["", ": waiting", "", ": waiting"]
            stream = client.completions.create(**asked)
            first = next(stream)
            time.sleep(0.1)  # some comments
        rest = list(stream)
    assert first.choices[0].text == ""
    assert rest[-1].choices[0].finish_reason == "length"


def test_a_full_line_says_so(server):
    with Slow(server, 4, stream=True):
        response = server.post(COMPLETION)
        assert_error(response, 429, "as many requests waiting as it takes", code="queue_full")
        assert response.headers["retry-after"] == "1"
    wait_for(lambda: server.num_open() == 0)
    assert server.post(COMPLETION).status_code == 200
    assert_error(server.post({**COMPLETION, "n": 5}), 400, "asks for 5 answers and the server holds 4", param="n")


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_what_was_held(server, stream):
    before = server.metric('t3d_requests_total{endpoint="completions",model="story-mini",status="499"}')
    for _ in range(3):
        if stream:
            with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                server.post(LONG, timeout=0.3)
    server.wait_until_idle()
    wait_for(lambda: server.num_open() == 0)  # said by each request's own task, a moment later
    line = 't3d_requests_total{endpoint="completions",model="story-mini",status="499"}'
    wait_for(lambda: server.metric(line) == before + 3)


def test_who_leaves_in_the_middle_of_a_body_is_no_defect(server, caplog):
    line = 't3d_requests_total{endpoint="completions",model="",status="499"}'
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head)
        time.sleep(0.1)
    wait_for(lambda: server.metric(line) == 1)
    assert "Traceback" not in caplog.text


def test_the_time_of_a_request_is_limited():
    with story_server(request_timeout=0.3, endless=True) as server:
        assert_error(server.post(LONG), 504, "took longer than 0.3 seconds", code="timeout", type="timeout_error")
        assert last_event(server.post({**LONG, "stream": True}))["error"]["code"] == "timeout"
        server.wait_until_idle()


def test_keys_and_rates():
    with story_server(api_keys=("secret", "other"), requests_per_minute=2) as server:
        assert server.http.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for response in (server.post(COMPLETION, headers=headers), server.http.get("/metrics", headers=headers)):
                assert_error(response, 401, "Authorization: Bearer KEY", code="invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        keys = [{"Authorization": f"Bearer {key}"} for key in ("secret", "other")]
        assert server.http.get("/v1/models", headers=keys[0]).status_code == 200
        assert [server.post(COMPLETION, headers=keys[0]).status_code for _ in range(2)] == [200, 200]
        response = server.post(COMPLETION, headers=keys[0])
        assert_error(response, 429, "too many requests", type="rate_limit_error", code="rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert server.post(COMPLETION, headers=keys[1]).status_code == 200


def test_pages_of_others_may_call_only_if_they_are_named():
    asked = {"Origin": "https://a.example"}
    with story_server() as server:
        assert "access-control-allow-origin" not in server.http.get("/v1/models", headers=asked).headers
        page = server.http.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert page.headers["x-content-type-options"] == "nosniff"
    with story_server(cors_origins=("https://a.example",), api_keys=("k",)) as server:
        headers = {**asked, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        response = server.http.options("/v1/completions", headers=headers)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = server.http.get("/health", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers

"""A server from its start to its end: what it counts, what it logs, and how it stops."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import typer
from serving import COMPLETION, LONG, assert_error, last_event, story_server, wait_for

from t3d import models
from t3d.cli import app, run
from t3d.errors import RequestError, WorkError
from t3d.serve import Service, Settings, bind
from t3d.serve.server import Server, is_loopback


def test_metrics_count_what_was_answered():
    with story_server() as server:
        answers = [server.post({**COMPLETION, "n": 2}).json() for _ in range(3)]
        server.post({**COMPLETION, "n": 0})
        label = '{model="story-mini"}'
        prompt_tokens = sum(answer["usage"]["prompt_tokens"] for answer in answers)
        assert server.metric("t3d_prompt_tokens_total" + label) == prompt_tokens
        completion_tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert server.metric("t3d_completion_tokens_total" + label) == completion_tokens
        forwards = sum(choice["t3d"]["forwards"] for answer in answers for choice in answer["choices"])
        assert server.metric("t3d_forwards_total" + label) == forwards
        assert server.metric("t3d_tokens_per_forward_count" + label) == 6
        assert server.metric("t3d_first_block_seconds_count" + label) == 3
        assert server.metric("t3d_request_seconds_count" + label) == 3
        ok = 't3d_requests_total{endpoint="completions",model="story-mini",status="200"}'
        assert server.metric(ok) == 3
        wrong = 't3d_requests_total{endpoint="completions",model="",status="400"}'
        assert server.metric(wrong) == 1
        assert server.metric("t3d_running" + label) == 0
        assert server.metric("t3d_kv_pages_share" + label) == 0


def test_a_failed_engine_is_told_and_seen(monkeypatch):
    def broken(core):
        raise RuntimeError("out of order")

    with story_server() as server:
        monkeypatch.setattr("t3d.engine.continuous.core.Core.step", broken)
        assert_error(server.post(COMPLETION), 500, "out of order", type="server_error", code="engine_failed")
        response = server.http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "an engine has failed")


def test_a_defect_is_logged_and_not_told(monkeypatch, caplog):
    def broken(*args):
        raise ZeroDivisionError("an inner secret")

    with story_server() as server, caplog.at_level(logging.ERROR):
        monkeypatch.setattr("t3d.serve.service.asks_of", broken)
        response = server.post(COMPLETION)
        assert_error(response, 500, "its log says why", type="server_error")
        assert "secret" not in response.text
        wait_for(lambda: "an inner secret" in caplog.text)
        monkeypatch.undo()
        assert server.post(COMPLETION).status_code == 200


def without_stop_token(folder):
    """A copy of a built-in model that never ends by itself."""
    shutil.copytree(models.resolve_model("story-mini"), folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        kept = {field: value for field, value in fields.items() if not field.startswith("eos_token")}
        (folder / name).write_text(json.dumps({**kept, **({"eos_token_id": None} if name == "config.json" else {})}))
    return folder


@contextmanager
def process(model, *options):
    """`t3d serve` and its address."""
    command = [sys.executable, "-m", "t3d.cli", "serve", "--model", f"one={model}", "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "T3D_API_KEY": "k"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        try:
            address, _, names = child.stdout.readline().partition(" serves ")
            assert names == "one\n"
            yield child, address
        finally:
            child.kill()


def test_a_signal_lets_requests_finish_or_tells_them(tmp_path):
    outcomes = {}
    model = without_stop_token(tmp_path / "model")
    headers = {"Authorization": "Bearer k"}
    with process(model, "--shutdown-seconds", "1") as (child, address):
        with httpx.Client(base_url=address, timeout=30, headers=headers) as http:

            def ask(name, **fields):
                outcomes[name] = http.post("/v1/completions", json={**LONG, "model": "one", **fields})

            asked = {"short": {"max_tokens": 12}, "long": {"n": 3}, "stream": {"n": 3, "stream": True}}
            threads = [threading.Thread(target=ask, args=(name,), kwargs=fields) for name, fields in asked.items()]
            for thread in threads:
                thread.start()
            wait_for(lambda: 't3d_prompt_tokens_total{model="one"} 102.0' in http.get("/metrics").text)
            child.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
        assert child.wait(timeout=20) == 0
    assert outcomes["short"].status_code == 200
    assert outcomes["short"].json()["usage"]["completion_tokens"] == 12
    assert_error(outcomes["long"], 503, "was shut down before", code="shutting_down")
    assert last_event(outcomes["stream"])["error"]["code"] == "shutting_down"


def test_a_server_that_ends_lets_nothing_more_in():
    with (
        story_server(endless=True) as server,
        server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}),
    ):
        server.service.is_ending = True
        assert_error(server.post(COMPLETION), 503, "is shutting down", code="shutting_down")
        assert server.http.get("/health").json()["status"] == "shutting down"


def test_a_second_signal_ends_at_once():
    server = Server(Service([], 0, 1.0), Settings(), on_ready=lambda: None)
    told = []
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
        told.append((server.should_exit, server.force_exit))
    assert told == [(True, False), (True, True)]


def test_the_docs_name_what_there_is():
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    options = {name for option in typer.main.get_command(app).commands["serve"].params for name in option.opts}
    told = re.sub(r"`[^`]*python bench/[^`]*`", "", page)  # the scripts that measure have options of their own
    assert set(re.findall(r"--[a-z][a-z-]+", told)) <= options
    figures = Service([], 0, 1.0).metrics.text().decode()
    names = set(re.findall(r"`(t3d_[a-z_]+)`", page))
    assert len(names) > 9
    assert all(f"# HELP {name.removesuffix('_total')}" in figures for name in names)


def test_addresses_that_cannot_be_had(capsys):
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--model", "story-mini", "--port", str(port)]) == 2
    assert f"--port {port}: is taken at 127.0.0.1; choose another, or 0" in capsys.readouterr().err
    with pytest.raises(RequestError, match="not an address of this machine"):
        bind("no such host", 0)
    with pytest.raises(RequestError, match="cannot be had"):
        bind("192.0.2.1", 0)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "x.example")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_wrong_options_are_refused(capsys):
    for options, message in (
        (["--model", "nowhere"], "model nowhere: not a folder"),
        (["--model", "story-mini", "--model", "a=story-mini", "--model", "a=story-small"], "--model a: given twice"),
        (["--model", "story-mini", "--rule", "best"], "rule 'best' is unknown"),
        (["--model", "story-mini", "--steps-per-block", "5"], "steps_per_block must be at most block_size (4)"),
        (["--model", "story-mini", "--read-timeout", "0"], "read_timeout must be more than 0"),
        ([], "Missing option '--model'"),
    ):
        assert run(["serve", "--port", "0", *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(RequestError, match="api_key"):
        Settings(api_keys=("",))
    with pytest.raises(RequestError, match="finite"):
        Settings(shutdown_seconds=float("inf"))


def test_an_open_door_is_warned_of(capsys, monkeypatch):
    monkeypatch.setattr("t3d.serve.load_served", lambda *args: (_ for _ in ()).throw(WorkError("stop here")))
    assert run(["serve", "--model", "story-mini", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "warning: anyone who reaches 0.0.0.0 can use this server" in capsys.readouterr().err
    assert run(["serve", "--model", "story-mini", "--host", "0.0.0.0", "--port", "0", "--api-key", "k"]) == 1
    assert "warning" not in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("t3d.cli_serve.find_spec", lambda name: None)
    assert run(["serve", "--model", "story-mini"]) == 2
    assert "pip install 't3d[serve]'" in capsys.readouterr().err

"""Requests that a server should answer with a refusal and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GOOD = {"prompt": "Tom has 3 apples.", "max_tokens": 4}
GOOD_CHAT = {"messages": [{"role": "user", "content": "Tom has 3 apples."}], "max_tokens": 4}
WRONG_VALUES: tuple[Any, ...] = ("3", -1, -(10**30), 10**30, 1e300, True, [], {}, [1], 0.5)
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999")


@dataclass(frozen=True, slots=True)
class Malformed:
    """One request as bytes on the wire.

    Attributes:
        name: what is wrong with it.
        data: of a whole HTTP request.
        may_close: the server may hang up without an answer.
    """

    name: str
    data: bytes
    may_close: bool = False


def malformed(model: str) -> list[Malformed]:
    """All of them.

    Args:
        model: one that is served.
    """
    return [*_bodies(model), *_numbers(model), *_fields(model), *_prompts(model), *_messages(model), *_http(model)]


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """An HTTP/1.1 request that closes the connection after its answer."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        *(headers or ("Content-Type: application/json",)),
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def good(model: str) -> bytes:
    """A request that is to be answered, between two that are not."""
    return _completion(model)


def _completion(served: str, **changes: Any) -> bytes:
    return post(COMPLETIONS, json.dumps({"model": served, **GOOD, **changes}).encode())


def _chat(served: str, **changes: Any) -> bytes:
    return post(CHAT, json.dumps({"model": served, **GOOD_CHAT, **changes}).encode())


def _raw(model: str, field: str, value: str) -> bytes:
    """A completion with a field written as it is, which need not be JSON."""
    whole = json.dumps({"model": model, **{key: each for key, each in GOOD.items() if key != field}})
    return post(COMPLETIONS, (whole[:-1] + f', "{field}": {value}}}').encode())


def _bodies(model: str) -> Iterator[Malformed]:
    text = json.dumps({"model": model, **GOOD})
    for name, body in (
        ("empty", b""),
        ("cut", text[:-5].encode()),
        ("two objects", (text + text).encode()),
        ("list", b"[]"),
        ("string", b'"hello"'),
        ("number", b"7"),
        ("null", b"null"),
        ("not JSON", b"model=story-mini&prompt=hello"),
        ("single quotes", text.replace('"', "'").encode()),
        ("trailing comma", (text[:-1] + ",}").encode()),
        ("comment", ("/* hello */" + text).encode()),
        ("binary", bytes(range(256))),
        ("zeros", b"\0" * 1000),
        ("byte order mark of UTF-16", text.encode("utf-16")),
        ("invalid UTF-8 in the prompt", text.replace("Tom", "T\udcffm").encode("utf-8", "surrogateescape")),
        ("invalid UTF-8 in a key", text.replace("prompt", "prom\udcc3t").encode("utf-8", "surrogateescape")),
        ("overlong UTF-8", text.encode().replace(b"Tom", b"T\xc0\xafm")),
        ("nested lists", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("nested objects", b'{"prompt": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
        ("a number of a million digits", b'{"max_tokens": ' + b"9" * 1_000_000 + b"}"),
    ):
        for path in (COMPLETIONS, CHAT):
            yield Malformed(f"body: {name} to {path}", post(path, body))


def _numbers(model: str) -> Iterator[Malformed]:
    for field in ("max_tokens", "n", "seed", "steps_per_block", "top_k"):
        for value in WRONG_VALUES:
            if (field, value) != ("n", True):
                yield Malformed(f"{field}: {value!r}", _completion(model, **{field: value}))
        yield Malformed(f"{field}: huge and whole", _completion(model, **{field: 10**19}))
    for field in ("temperature", "top_p", "threshold"):
        for value in ("1", -0.1, 1e300, True, [], {}):
            yield Malformed(f"{field}: {value!r}", _completion(model, **{field: value}))
        for value in NOT_FINITE:
            yield Malformed(f"{field}: {value}", _raw(model, field, value))


def _fields(model: str) -> Iterator[Malformed]:
    for changes in (
        {"model": "gpt-4"},
        {"model": 5},
        {"model": None},
        {"model": "../../etc/passwd"},
        {"model": "x" * 10_000},
        {"unknown": 1},
        {"Prompt": "hello"},
        {"stream": "yes"},
        {"stream": 1},
        {"stream_options": {"include_usage": "yes"}},
        {"stream_options": {"unknown": True}},
        {"stop": 5},
        {"stop": [""]},
        {"stop": ""},
        {"stop": ["a"] * 100},
        {"stop": ["x" * 100_000]},
        {"stop_token_ids": ["a"]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": list(range(1000))},
        {"rule": "fastest"},
        {"rule": 3},
        {"return_trajectory": "yes"},
        {"logprobs": -1},
        {"logprobs": 50},
        {"logprobs": "yes"},
        {"echo": True},
        {"suffix": "end"},
        {"best_of": 5},
        {"frequency_penalty": 1.0},
        {"presence_penalty": -1.0},
        {"logit_bias": {"5": 100}},
        {"tools": [{"type": "function"}]},
    ):
        field, value = next(iter(changes.items()))
        yield Malformed(f"{field}: {str(value)[:40]}", _completion(model, **changes))
    yield Malformed("chat: top_logprobs", _chat(model, logprobs=True, top_logprobs=5))
    yield Malformed("chat: response_format", _chat(model, response_format={"type": "json_object"}))
    yield Malformed("chat: no model", post(CHAT, json.dumps(GOOD_CHAT).encode()))
    yield Malformed("completion: no model", post(COMPLETIONS, json.dumps(GOOD).encode()))


def _prompts(model: str) -> Iterator[Malformed]:
    for name, prompt in (
        ("null", None),
        ("number", 5),
        ("empty", ""),
        ("empty list", []),
        ("list of empty lists", [[]]),
        ("mixed list", ["hello", 5]),
        ("mixed ids", [1, "two"]),
        ("negative id", [3, -1]),
        ("huge id", [3, 10**9]),
        ("the mask", [3, 1]),
        ("fraction", [3, 1.5]),
        ("bools", [True, False]),
        ("object", {"text": "hello"}),
        ("too many", ["hello"] * 10_000),
        ("too long", "apple " * 20_000),
        ("10 MB", "apple " * 1_750_000),
        ("lone surrogate", "\ud800"),
    ):
        yield Malformed(f"prompt: {name}", _completion(model, prompt=prompt), may_close=name == "10 MB")
    yield Malformed("prompt: none", post(COMPLETIONS, json.dumps({"model": model}).encode()))


def _messages(model: str) -> Iterator[Malformed]:
    user = {"role": "user", "content": "hello"}
    for name, messages in (
        ("null", None),
        ("empty", []),
        ("string", "hello"),
        ("a string inside", ["hello"]),
        ("no role", [{"content": "hello"}]),
        ("no content", [{"role": "user"}]),
        ("unknown role", [{"role": "wizard", "content": "hello"}]),
        ("content number", [{"role": "user", "content": 5}]),
        ("content null", [{"role": "user", "content": None}]),
        ("image", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}]),
        ("unknown part", [{"role": "user", "content": [{"type": "smell"}]}]),
        ("unknown key", [{**user, "mood": "good"}]),
        ("too many", [user] * 100_000),
        ("prompt too", None),
    ):
        changes = {"prompt": "hello"} if name == "prompt too" else {"messages": messages}
        yield Malformed(f"messages: {name}", _chat(model, **changes), may_close=name == "too many")


def _http(model: str) -> Iterator[Malformed]:
    body = json.dumps({"model": model, **GOOD}).encode()
    chunked = "Transfer-Encoding: chunked"
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    yield Malformed("path unknown", post("/v1/nothing", body))
    yield Malformed("path with dots", post("/../../etc/passwd", body))
    yield Malformed("path of two lines", post("/v1/a%0Ab", body))
    yield Malformed("host", post("/v1/nothing", body).replace(b"Host: localhost", b"Host: [", 1), may_close=True)
    yield Malformed("method", post(COMPLETIONS, body).replace(b"POST", b"PUT", 1))
    yield Malformed("GET of completions", post(COMPLETIONS, b"").replace(b"POST", b"GET", 1))
    yield Malformed("content type", post(COMPLETIONS, body, "Content-Type: text/plain"))
    yield Malformed("compressed", post(COMPLETIONS, body, "Content-Type: application/json", "Content-Encoding: gzip"))
    yield Malformed("says it is huge", post(COMPLETIONS, body, length=10**12), may_close=True)
    yield Malformed("negative length", post(COMPLETIONS, body, length=-5), may_close=True)
    yield Malformed("not HTTP", b"hello\r\n\r\n", may_close=True)
    yield Malformed("binary", bytes(range(256)) * 4, may_close=True)
    yield Malformed("TLS", bytes.fromhex("16030100c2010000be0303") + bytes(100), may_close=True)
    yield Malformed("no host, HTTP/3.0", b"POST /v1/completions HTTP/3.0\r\n\r\n", may_close=True)
    yield Malformed("huge header", head.encode() + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n", may_close=True)
    yield Malformed("many headers", head.encode() + b"X-A: b\r\n" * 20_000 + b"\r\n", may_close=True)
    yield Malformed("bad chunk", f"{head}{chunked}\r\n\r\nZZZ\r\n".encode(), may_close=True)
    yield Malformed("two lengths", post(COMPLETIONS, body, "Content-Length: 3"), may_close=True)
    yield Malformed(
        "chunks without end",
        f"{head}Content-Type: application/json\r\n{chunked}\r\n\r\n".encode()
        + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 200,
        may_close=True,
    )

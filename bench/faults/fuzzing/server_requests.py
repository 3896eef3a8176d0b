"""Requests to the server, through its whole application and an engine that answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.drawing import Draw, as_json, broken, pick
from fuzzing.targets import Case, Target, json_bombs

PATHS = ("/v1/completions", "/v1/chat/completions")
BODY, PATH = "body", "path"
MODEL = "story-mini"
POSITIONS = 24


class RequestTarget(Target):
    """Bodies of both endpoints: an answer, a stream, or an error of OpenAI's shape with a status from 400 to 499."""

    name = "request"
    SEEDS: tuple[tuple[str, dict[str, Any]], ...] = (
        (
            PATHS[0],
            {
                "model": MODEL,
                "prompt": "Hi",
                "max_tokens": 4,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 3,
                "seed": 1,
                "n": 1,
                "stop": ["\n"],
                "stop_token_ids": [1],
                "logprobs": 0,
                "rule": "low_confidence_dynamic",
                "threshold": 0.9,
                "steps_per_block": 2,
                "return_trajectory": True,
                "best_of": 1,
                "user": "me",
                "echo": False,
            },
        ),
        (
            PATHS[0],
            {
                "model": MODEL,
                "prompt": [[5, 6], [7]],
                "max_tokens": 4,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        (
            PATHS[1],
            {
                "model": MODEL,
                "messages": [{"role": "user", "content": "Hi"}],
                "max_completion_tokens": 4,
                "logprobs": True,
                "top_logprobs": 0,
                "response_format": {"type": "text"},
                "tools": [],
                "entropy_bound": 0.5,
            },
        ),
        (
            PATHS[1],
            {
                "model": MODEL,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
                "stream": True,
                "max_tokens": 2,
            },
        ),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from t3d.models import load_model, load_tokenizer
        from t3d.serve import ModelOptions, Service, Settings
        from t3d.serve.app import make_app
        from t3d.serve.models import serve_model, warm_up

        served = serve_model(
            MODEL,
            load_model(MODEL, device="cpu"),
            load_tokenizer(MODEL),
            None,
            ModelOptions(max_batch_size=4, max_positions=POSITIONS),
        )
        warm_up(served)
        self._service = Service([served], max_waiting=2000, request_timeout=60)
        self._app = make_app(self._service, Settings())
        self._loop = asyncio.new_event_loop()

    def make(self, draw: Draw) -> Case:
        """A body with faults."""
        path, body = pick(draw, self.SEEDS)
        return {PATH: (path if draw.below(10) < 9 else PATHS[0]).encode(), BODY: as_json(draw, broken(draw, body))}

    def shaped(self, value: Any) -> Case:
        """Any value as the prompt, or as the body."""
        body = {**self.SEEDS[0][1], "prompt": value} if not isinstance(value, dict) else value
        return {PATH: PATHS[0].encode(), BODY: json.dumps(body).encode("utf-8", "surrogatepass")}

    def run(self, case: Case) -> None:
        """Ask the application as a web server would."""
        status, body = self._loop.run_until_complete(self._ask(case[PATH].decode(), case[BODY]))
        if status == 200:
            return
        from t3d.errors import RequestError

        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, body[:200]
        assert 400 <= status < 500, f"status {status}: {error['message']}"
        raise (
            RequestError(error["message"])
            if error["message"].isprintable()
            else ValueError(f"unprintable: {error['message'][:80]!r}")
        )

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Of JSON; many and long values."""
        for (path, seed), key in ((self.SEEDS[0], "prompt"), (self.SEEDS[2], "messages")):
            for what, content in json_bombs(seed):
                yield f"{path} {what}", {PATH: path.encode(), BODY: content}
                inside = json.dumps({**seed, key: "@"}).encode().replace(b'"@"', content)
                yield f"{path} {key}: {what}", {PATH: path.encode(), BODY: inside}
        for prompt in (
            "x" * 10**6,
            [0] * 10**5,
            [[0]] * 10**5,
            ["a"] * 10**5,
            [2**200],
            [[-1]],
            [[10**9]],
            [True],
            "\ud800",
        ):
            body = json.dumps({"model": MODEL, "prompt": prompt}).encode()
            yield f"prompt {str(prompt)[:12]}", {PATH: PATHS[0].encode(), BODY: body}

    async def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self._app(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        return start["status"], b"".join(message.get("body", b"") for message in sent)

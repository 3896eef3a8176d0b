"""A thousand requests at once, of all sizes: none lost, none mixed up, memory flat after.

    python bench/serving/load.py --model story-mini --out bench/results/serving/load-story-mini-cpu.json

Every request is sent alone first, to the same server. Then all are sent at once, several times over; each answer must
be the one that it had alone, in text, tokens and steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from served import Served, report

from t3d.tasks import get_task

TIMEOUT = httpx.Timeout(1800.0)
SHORT, LONG = 1, 6
"""Problems in a prompt."""
LENGTHS = (1, 8, 40, 160, 200)
"""Of answers that are asked for, in tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; two of one request must be equal.

    Attributes:
        choices: for each its text, finish reason, token ids and reveal steps.
        completion_tokens: of all choices.
    """

    choices: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...]
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request went: its answer, or why there is none; seconds to the first event and to the end."""

    answer: Answer | None
    error: str | None
    first_seconds: float
    seconds: float


def main() -> None:
    """Start a server, send, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="story-mini")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--waves", type=int, default=3, help="how often all are sent at once")
    parser.add_argument("--longest", type=int, default=max(LENGTHS), help="answer that is asked for, in tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("options", nargs="*", help="of t3d serve, after --")
    arguments = parser.parse_args()
    bodies = make_requests(arguments.model, arguments.requests, arguments.seed, arguments.longest)
    with Served("--model", arguments.model, "--max-waiting", str(2 * len(bodies)), *arguments.options) as server:
        result = asyncio.run(measure(server, bodies, arguments.waves))
    report("load.py", result, arguments.out)
    sys.exit(any(wave["lost"] or wave["different"] for wave in result["waves"]))


def make_requests(model: str, count: int, seed: int, longest: int = max(LENGTHS)) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of requests of all kinds: long and short, greedy and drawn, streamed and whole.

    Args:
        longest: answer that is asked for, in tokens.
    """
    draw = random.Random(seed)
    questions = [problem.question for problem in get_task("story").problems("test", 300)]
    lengths = [length for length in LENGTHS if length <= longest]
    return [_request(model, draw, questions, lengths) for _ in range(count)]


def _request(model: str, draw: random.Random, questions: list[str], lengths: list[int]) -> tuple[str, dict[str, Any]]:
    text = "\n\n".join(draw.sample(questions, draw.choice([SHORT, SHORT, SHORT, 2, LONG])))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": draw.choice(lengths),
        "seed": draw.randrange(2**31),
        "temperature": draw.choice([0, 0, 0.7, 1.0]),
        "top_p": draw.choice([1.0, 0.9]),
        "steps_per_block": draw.choice([1, 2, 4]),
        "stream": draw.random() < 0.5,
        "return_trajectory": True,
    }
    if draw.random() < 0.2:
        body |= {"rule": "low_confidence_dynamic", "threshold": draw.choice([0.5, 0.9])}
    if draw.random() < 0.2:
        body["n"] = 2
    if draw.random() < 0.2:
        body["stop"] = draw.choice([["####"], [".", "so"], " 1"])
    if draw.random() < 0.5:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}
    return "/v1/completions", body | {"prompt": text}


async def measure(server: Served, bodies: list[tuple[str, dict[str, Any]]], waves: int) -> dict[str, Any]:
    """Each alone, then all at once."""
    limits = httpx.Limits(max_connections=len(bodies), max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        begin = time.perf_counter()
        alone = [await send(client, *each) for each in bodies]
        result: dict[str, Any] = {
            "requests": len(bodies),
            "alone": {**_figures(alone, time.perf_counter() - begin), "rss_mib": round(server.rss_mib, 1)},
            "waves": [],
        }
        for _ in range(waves):
            begin = time.perf_counter()
            together = await asyncio.gather(*(send(client, *each) for each in bodies))
            seconds = time.perf_counter() - begin
            idle = server.seconds_until_idle()
            result["waves"].append(
                {
                    "different": sum(
                        a.answer is not None and a.answer != b.answer for a, b in zip(together, alone, strict=True)
                    ),
                    **_figures(together, seconds),
                    "seconds_until_idle": round(idle, 2),
                    "rss_mib": round(server.rss_mib, 1),
                }
            )
            print(result["waves"][-1], file=sys.stderr, flush=True)
    return result


async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Outcome:
    """One request to its end; failures are outcomes too."""
    begin = time.perf_counter()
    try:
        if body["stream"]:
            answer, first = await _send_streamed(client, path, body)
        else:
            answer = await _send_whole(client, path, body)
            first = time.perf_counter()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Outcome(None, f"{type(error).__name__}: {error}"[:200], 0.0, time.perf_counter() - begin)
    return Outcome(answer, None, first - begin, time.perf_counter() - begin)


async def _send_whole(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Answer:
    response = await client.post(path, json=body)
    if response.status_code != 200:
        raise ValueError(f"{response.status_code} {response.text}")
    found = response.json()
    choices = sorted(found["choices"], key=lambda choice: choice["index"])
    return Answer(
        tuple((_text(each), each["finish_reason"], *_trajectory(each["trajectory"])) for each in choices),
        found["usage"]["completion_tokens"],
    )


async def _send_streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[Answer, float]:
    """The answer put together from its events, and when the first one came."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    tokens: dict[int, tuple[int, ...]] = {}
    steps: dict[int, tuple[int, ...]] = {}
    usage, first, is_done = None, None, False
    async with client.stream("POST", path, json=body | {"stream_options": {"include_usage": True}}) as response:
        if response.status_code != 200:
            raise ValueError(f"{response.status_code} {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            first = first or time.perf_counter()
            if line == "data: [DONE]":
                is_done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError(f"in the stream: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                index = choice["index"]
                texts[index] = texts.get(index, "") + _text(choice)
                if choice.get("trajectory"):
                    ids, revealed = _trajectory(choice["trajectory"])
                    tokens[index] = tokens.get(index, ()) + ids
                    steps[index] = steps.get(index, ()) + revealed
                if choice.get("finish_reason"):
                    reasons[index] = choice["finish_reason"]
    if not is_done or usage is None or first is None:
        raise ValueError("the stream ended without its last events")
    choices = tuple((texts[i], reasons[i], tokens.get(i, ()), steps.get(i, ())) for i in sorted(texts))
    return Answer(choices, usage["completion_tokens"]), first


def _text(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return choice["text"] or ""
    return (choice.get("message") or choice.get("delta") or {}).get("content") or ""


def _trajectory(found: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(found["token_ids"]), tuple(found["reveal_steps"])


def _figures(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    answered = [each for each in outcomes if each.answer is not None]
    tokens = sum(each.answer.completion_tokens for each in answered if each.answer is not None)
    waits = [each.seconds for each in answered]
    p50, p95, p99 = np.percentile(waits, [50, 95, 99]).tolist() if waits else (0.0, 0.0, 0.0)
    errors = Counter(each.error for each in outcomes if each.error)
    return {
        "lost": len(outcomes) - len(answered),
        "errors": dict(errors.most_common(5)),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(answered) / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "latency_seconds": {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)},
    }


if __name__ == "__main__":
    main()

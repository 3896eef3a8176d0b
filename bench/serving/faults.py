"""What clients and operators do to a server: malformed requests, slow clients, leaving mid-stream, SIGTERM under load.

    python bench/serving/faults.py --model story-mini --out bench/results/serving/faults-story-mini-cpu.json

After each kind the server must answer as before, and hold no slot and no page of the cache. Exit code 1 if it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from malformed import COMPLETIONS, good, malformed
from served import Served, report

READ_TIMEOUT = 3
"""Seconds that the server gives a slow client; its own default is longer."""
PROMPT = "Tom has 3 apples and buys 4 more. How many apples does Tom have now?"


def main() -> None:
    """Do all of it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="story-mini")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    options = ("--model", arguments.model, "--read-timeout", str(READ_TIMEOUT))
    with Served(*options) as server:
        result: dict[str, Any] = {
            "malformed": send_malformed(server, arguments.model),
            "slow": asyncio.run(be_slow(server, arguments.model)),
            "leaving": asyncio.run(leave(server, arguments.model, clients=100)),
        }
    with Served(*options) as server:
        result["sigterm"] = asyncio.run(terminate_under_load(server, arguments.model, requests=64))
    report("faults.py", result, arguments.out)
    failures = [each for part in ("malformed", "slow", "leaving", "sigterm") for each in result[part]["failures"]]
    sys.exit(bool(failures))


def send_malformed(server: Served, model: str) -> dict[str, Any]:
    """Each malformed request, and a good one after every twentieth."""
    outcomes, failures = Counter[str](), []
    for number, each in enumerate(malformed(model), start=1):
        answer = exchange(server.address, each.data)
        verdict = judge(answer)
        outcomes[verdict] += 1
        if not (verdict.startswith("4") or (verdict == "closed" and each.may_close)):
            failures.append(f"{each.name}: {verdict}")
        if number % 20 == 0 and not exchange(server.address, good(model)).startswith(b"HTTP/1.1 200"):
            failures.append(f"after {each.name}: a good request was not answered")
    server.seconds_until_idle()
    return {"requests": sum(outcomes.values()), "outcomes": dict(outcomes.most_common()), "failures": failures}


def exchange(address: tuple[str, int], data: bytes, seconds: float = 60.0) -> bytes:
    """Send bytes, and all that comes back until the server closes; empty where it just hangs up."""
    received = b""
    with socket.create_connection(address, timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it may have answered and closed before it read all
            connection.sendall(data)
        try:
            while part := connection.recv(65536):
                received += part
        except TimeoutError:
            return b"no answer"
        except OSError:
            return received
    return received


def judge(answer: bytes) -> str:
    """A status whose body is OpenAI's error, "closed", or what is wrong with the answer."""
    if not answer:
        return "closed"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode() if head.startswith(b"HTTP/1.1 ") else repr(answer[:40])
    try:
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert "\n" not in error["message"]
        assert "Traceback" not in error["message"]
    except (ValueError, KeyError, AssertionError, TypeError):
        return f"{status} without an error object"
    return status


async def be_slow(server: Served, model: str, clients: int = 40) -> dict[str, Any]:
    """Slow loris: a byte now and then of a header, or of a body; others are answered meanwhile."""
    whole = good(model)
    in_header, in_body = whole[:20], whole[:-10]
    slow = [asyncio.create_task(_drip(server.address, (in_header, in_body)[i % 2])) for i in range(clients)]
    async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
        begin = time.monotonic()
        answered = await client.post(COMPLETIONS, json={"model": model, "prompt": PROMPT, "max_tokens": 16})
        meanwhile = time.monotonic() - begin
    seconds = await asyncio.gather(*slow)
    failures = [f"a slow client was held for {each:.1f} s" for each in seconds if each > 3 * READ_TIMEOUT + 2]
    if answered.status_code != 200:
        failures.append(f"another client was answered {answered.status_code}")
    server.seconds_until_idle()
    return {
        "clients": clients,
        "read_timeout_seconds": READ_TIMEOUT,
        "longest_held_seconds": round(max(seconds), 1),
        "another_client_waited_seconds": round(meanwhile, 2),
        "failures": failures,
    }


async def _drip(address: tuple[str, int], data: bytes) -> float:
    """Send data and then a byte a half second, until the server hangs up; how long that took."""
    reader, writer = await asyncio.open_connection(*address)
    begin = time.monotonic()
    writer.write(data)
    ended = asyncio.create_task(reader.read())
    try:
        while not ended.done() and time.monotonic() - begin < 60:
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.5)
    finally:
        ended.cancel()
        writer.close()
    return time.monotonic() - begin


async def leave(server: Served, model: str, clients: int) -> dict[str, Any]:
    """Clients that begin to stream long answers and go away after the first events; half without streaming."""

    async def one(number: int) -> bool:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 900, "seed": number, "temperature": 1.0, "n": 2}
        body |= {"stream": number % 2 == 0, "logprobs": 0}
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            if not body["stream"]:
                try:
                    await client.post(COMPLETIONS, json=body, timeout=httpx.Timeout(60, read=0.2))
                except httpx.ReadTimeout:
                    return True
                return False
            async with client.stream("POST", COMPLETIONS, json=body) as response:
                async for line in response.aiter_lines():
                    if '"finish_reason":null' in line.replace(" ", ""):
                        return True
        return False

    left = await asyncio.gather(*(one(number) for number in range(clients)))
    failures = []
    try:
        seconds = server.seconds_until_idle()
    except TimeoutError as error:
        seconds, failures = float("nan"), [str(error)]
    if not exchange(server.address, good(model)).startswith(b"HTTP/1.1 200"):
        failures.append("a good request was not answered afterwards")
    return {
        "clients": clients,
        "left_before_the_end": sum(left),
        "seconds_until_all_slots_are_free": round(seconds, 2),
        "failures": failures,
    }


async def terminate_under_load(server: Served, model: str, requests: int) -> dict[str, Any]:
    """SIGTERM while requests run and more come: each ends whole or with a clear error; the process exits with 0."""
    outcomes = Counter[str]()
    limits = httpx.Limits(max_connections=2 * requests)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, trust_env=False) as client:
        running = [asyncio.create_task(_ending(client, model, number)) for number in range(requests)]
        await asyncio.sleep(1.0)
        server.terminate()
        begin = time.monotonic()
        await asyncio.sleep(0.3)
        late = await asyncio.gather(*(_ending(client, model, number) for number in range(8)))
        for each in await asyncio.gather(*running):
            outcomes[each] += 1
    code = await asyncio.to_thread(server.wait, 120)
    failures = [f"a running request ended: {each}" for each in outcomes if each not in ("whole", "503", "error event")]
    failures += [f"a late request ended: {each}" for each in late if each not in ("refused", "503")]
    if code != 0:
        failures.append(f"exit code {code}: {''.join(list(server.lines)[-5:])}")
    return {
        "requests": requests,
        "outcomes": dict(outcomes),
        "late": dict(Counter(late)),
        "exit_code": code,
        "seconds_until_exit": round(time.monotonic() - begin, 2),
        "failures": failures,
    }


async def _ending(client: httpx.AsyncClient, model: str, number: int) -> str:
    """How a request ends: "whole", "503", "error event", "refused", or something that should not be."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 200, "seed": number, "stream": number % 2 == 0}
    try:
        if not body["stream"]:
            response = await client.post(COMPLETIONS, json=body)
            return "whole" if response.status_code == 200 else str(response.status_code)
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            if response.status_code != 200:
                return str(response.status_code)
            lines = [line async for line in response.aiter_lines() if line]
    except httpx.ConnectError:
        return "refused"
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if lines and lines[-1] == "data: [DONE]":
        return "whole"
    return "error event" if lines and '"error"' in lines[-1] else "a stream without an end"


if __name__ == "__main__":
    main()

"""Answers on their way out, which end when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from t3d.serve.counting import CLIENT_LEFT, Outcome
from t3d.serve.errors import api_error_of
from t3d.serve.jobs import Draft, Job
from t3d.serve.service import Service
from t3d.serve.shapes import block_event, first_event, last_event, usage_event, whole_answer

SILENCE = b": waiting\n\n"
"""A comment: clients pass over it, proxies see that the connection is alive."""
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""A reverse proxy must not gather events."""


def to_json(value: Any) -> bytes:
    """As short as JSON can be, in ASCII: some readers of events take further characters for the end of a line."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def to_event(value: Any) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + to_json(value) + b"\n\n"


class JobResponse(Response):
    """A job that runs while it is answered."""

    def __init__(self, service: Service, job: Job, outcome: Outcome) -> None:
        self._service = service
        self._job = job
        self._outcome = outcome
        self._drafts = [Draft() for _ in job.asks]
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run, until done or the client leaves.

        Raises:
            ApiError, WorkError: before anything was sent.
        """
        with self._service.admitted(self._job):
            if not await _unless_gone(receive, self._answer(send)):
                self._outcome.status = CLIENT_LEFT

    async def _answer(self, send: Send) -> None:
        raise NotImplementedError


class WholeResponse(JobResponse):
    """Everything at the end."""

    async def _answer(self, send: Send) -> None:
        async with aclosing(self._service.run(self._job)) as pieces:
            async for item in pieces:
                if item is not None:
                    index, piece = item
                    self._drafts[index].pieces.append(piece)
        body = to_json(whole_answer(self._job, self._drafts))
        head = Response(body, media_type="application/json")
        await send({"type": "http.response.start", "status": 200, "headers": head.raw_headers})
        await send({"type": "http.response.body", "body": body})


class StreamResponse(JobResponse):
    """Server-sent events: a finished block is one."""

    async def _answer(self, send: Send) -> None:
        head = Response(media_type="text/event-stream", headers=EVENT_HEADERS)
        headers = [(name, value) for name, value in head.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(line: bytes) -> None:
            await send({"type": "http.response.body", "body": line, "more_body": True})

        try:
            await self._tell_all(tell)
        except Exception as failure:
            error = api_error_of(failure)
            self._outcome.status = error.status
            await tell(to_event(error.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell_all(self, tell: Callable[[bytes], Awaitable[None]]) -> None:
        job = self._job
        for index in range(len(job.asks)):
            await tell(to_event(first_event(job, index)))
        async with aclosing(self._service.run(job)) as pieces:
            async for item in pieces:
                if item is None:
                    await tell(SILENCE)
                    continue
                index, piece = item
                self._drafts[index].pieces.append(piece)
                await tell(to_event(block_event(job, index, piece)))
                if piece.end is not None:
                    await tell(to_event(last_event(job, index, self._drafts[index])))
        if job.request.wants_usage:
            await tell(to_event(usage_event(job, job.usage(sum(draft.num_tokens for draft in self._drafts)))))
        await tell(b"data: [DONE]\n\n")


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> bool:
    """Do the work unless the client leaves meanwhile; returns whether it was done."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

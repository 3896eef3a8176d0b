"""Request bodies, and what becomes of those that nobody wants to read."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from t3d.serve.errors import ApiError, UnreadBody

LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20


async def read_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """The body of a request that says it is JSON.

    Args:
        max_bytes: of it, whether announced or not.
        timeout: seconds until it must be here.

    Raises:
        ApiError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnreadBody(
            415, "the body must be JSON: send Content-Type: application/json", code="unsupported_media_type"
        )
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):  # its size says nothing of what it unpacks to
        raise UnreadBody(
            415, "the body must not be compressed: leave Content-Encoding out", code="unsupported_media_type"
        )
    if int(request.headers.get("content-length", "0")) > max_bytes:  # digits: the protocol has seen to that
        raise _too_large(max_bytes)
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise UnreadBody(
            408, f"the body did not come within {timeout:g} seconds: send it faster", code="timeout"
        ) from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return UnreadBody(
        413, f"the body is larger than {max_bytes:,} bytes: send shorter or fewer prompts", code="body_too_large"
    )


class LingeringError(JSONResponse):
    """An error that closes the connection, but not before the client could read it.

    To close while a client still sends makes its system drop what it has not read yet, so that it would see a broken
    connection in place of the error.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body(), error.status, {**error.headers, "Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the error, let the rest of the body go by for a while, end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = LINGER_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return

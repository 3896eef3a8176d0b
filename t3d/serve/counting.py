"""Every request is counted once, by what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t3d.serve.errors import api_error_of
from t3d.serve.metrics import NO_MODEL, Metrics

CLIENT_LEFT = 499
ENDPOINTS = {
    "/": "page",
    "/health": "health",
    "/metrics": "metrics",
    "/v1/models": "models",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}


@dataclass
class Outcome:
    """What became of a request.

    Attributes:
        model: that it named, if it is served.
        status: that counts; what was sent first may say 200 of a stream that failed later.
    """

    model: str = NO_MODEL
    status: int = CLIENT_LEFT


def outcome_of(request: Request) -> Outcome:
    """The record of a request under way."""
    outcome = request.scope["t3d"]
    assert isinstance(outcome, Outcome)
    return outcome


class Counting:
    """Middleware that tells the metrics of each request, whatever becomes of it.

    It answers for defects too: from Starlette's own place for that, behind which uvicorn stands, they would cost the
    client its connection.

    Args:
        app: that it wraps.
        metrics: to tell.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, and count it when it is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        outcome = scope["t3d"] = Outcome()
        has_started = False

        async def note_status(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                outcome.status, has_started = message["status"], True
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except Exception as failure:
            error = api_error_of(failure)
            outcome.status = error.status
            if has_started:
                raise
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
        finally:
            self._metrics.on_request(outcome.model, ENDPOINTS.get(scope["path"], "other"), outcome.status)

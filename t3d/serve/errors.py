"""Errors as OpenAI's clients expect them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from t3d.errors import RequestError, WorkError

log = logging.getLogger("t3d.serve")

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
"""By status; other 4xx are `invalid_request_error`, other 5xx `server_error`."""


class ApiError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        message: one line that says what is wrong and what to do.
        param: the field that is meant.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class UnreadBody(ApiError):
    """An error told before the request's body has been read."""


def api_error_of(error: Exception) -> ApiError:
    """What a client is told of any failure; those that are not its own go to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error))
    log.error("a request failed: %s", error, exc_info=error)
    if isinstance(error, WorkError):
        return ApiError(500, str(error), code="engine_failed")
    return ApiError(500, "the server failed at this request; its log says why")

"""Who may ask, and how often."""

from __future__ import annotations

import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from t3d.serve.errors import UnreadBody
from t3d.serve.settings import Settings

MAX_BUCKETS = 10_000
"""Clients whose rate is remembered; of more, those who asked least recently are forgotten."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """A token bucket for each client: it holds a minute's requests and fills steadily.

    Args:
        per_minute: requests.
        clock: seconds, for tests.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = max(1.0, per_minute)
        self._per_second = per_minute / 60
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def seconds_to_wait(self, client: str) -> float:
        """0 if the client may ask now, which then counts; else seconds until it may."""
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(self._capacity, now))
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._capacity, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_second
        bucket.tokens -= 1
        return 0.0


class Gate:
    """Lets clients in by key and rate.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [key.encode() for key in settings.api_keys]
        self._rate = RateLimit(settings.requests_per_minute) if settings.requests_per_minute else None

    def check(self, request: Request, counts: bool = True) -> None:
        """Let a request pass.

        Args:
            counts: towards the client's rate.

        Raises:
            ApiError: 401 or 429.
        """
        client = self._key_of(request) or (request.client.host if request.client else "")
        wait = self._rate.seconds_to_wait(client) if self._rate and counts else 0.0
        if wait:
            raise UnreadBody(
                429,
                "too many requests: wait as long as Retry-After says",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(math.ceil(wait))},
            )

    def _key_of(self, request: Request) -> str | None:
        """The number of the key that a client shows; None if none is asked for."""
        if not self._keys:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        shown = given.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        matches = [place for place, key in enumerate(self._keys) if hmac.compare_digest(key, shown)]
        if not matches:
            raise UnreadBody(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return f"key {matches[0]}"

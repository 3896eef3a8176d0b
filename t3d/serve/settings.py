"""What a server allows its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from t3d.errors import RequestError


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits; wrong ones raise `RequestError` on construction.

    Attributes:
        api_keys: any of them opens the server; none: it is open. Not shown.
        request_timeout: seconds that a request may take in all.
        read_timeout: seconds that a client may take to send a header or a body, or to read on.
        max_waiting: answers of one model that may wait beside those that are decoded.
        max_body_mib: of a request.
        requests_per_minute: of one client (by key, else by address), after a burst of as many; None: no limit.
        cors_origins: whose pages may call this server from a browser.
        shutdown_seconds: that running requests get to finish when the server is told to end.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    request_timeout: float = 600.0
    read_timeout: float = 15.0
    max_waiting: int = 2048
    max_body_mib: float = 2.0
    requests_per_minute: float | None = None
    cors_origins: tuple[str, ...] = ()
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        numbers = (self.request_timeout, self.read_timeout, self.max_body_mib, self.shutdown_seconds)
        checks = (
            (all(map(math.isfinite, numbers)), "limits must be finite numbers"),
            (self.request_timeout > 0, "request_timeout must be more than 0 seconds"),
            (self.read_timeout > 0, "read_timeout must be more than 0 seconds"),
            (self.max_waiting >= 0, "max_waiting must be 0 or more"),
            (self.max_body_mib > 0, "max_body_mib must be more than 0"),
            (self.requests_per_minute is None or self.requests_per_minute > 0, "rate_limit must be more than 0"),
            (self.shutdown_seconds >= 0, "shutdown_seconds must be 0 or more"),
            (all(self.api_keys), "api_key must not be empty"),
            (all(key.isascii() and key.isprintable() for key in self.api_keys), "api_key must be printable ASCII"),
        )
        for holds, message in checks:
            if not holds:
                raise RequestError(message)

    @property
    def max_body_bytes(self) -> int:
        """Of a request."""
        return int(self.max_body_mib * 2**20)

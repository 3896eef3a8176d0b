"""Who runs next: requests wait in a queue and enter in order, at block boundaries."""

from __future__ import annotations

from collections import deque

from t3d.engine.plain.batch import Batch
from t3d.engine.request import Request


class Scheduler:
    """A queue before a batch's slots."""

    def __init__(self, requests: list[Request], batch: Batch) -> None:
        self._waiting = deque(requests)
        self._batch = batch

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting) or self._batch.num_running > 0

    def next_requests(self) -> list[Request]:
        """Those that enter now, as many as there are free slots."""
        return [self._waiting.popleft() for _ in range(min(self._batch.num_free, len(self._waiting)))]

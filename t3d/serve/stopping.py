"""Stop strings in text that comes in pieces, whose borders must not matter."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through up to the first stop string.

    The first is the one that is complete first; of those that end at the same place, the longest. Text that may yet
    become a stop string is held back.

    Attributes:
        has_hit: whether a stop string has come; all text behind it is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.has_hit = False

    def push(self, text: str) -> str:
        """The text that may be told now."""
        if self.has_hit or not self._stops:
            return "" if self.has_hit else text
        pending = self._held + text
        hits = [(place + len(stop), place) for stop in self._stops if (place := pending.find(stop)) >= 0]
        if hits:
            self.has_hit = True
            self._held = ""
            return pending[: min(hits)[1]]
        keep = self._num_open(pending)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """What was held back: no more text comes."""
        held, self._held = self._held, ""
        return held

    def _num_open(self, text: str) -> int:
        """Characters at the end of a text that begin a stop string; as many as can be."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        return next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )

"""Random choices that are the same on every platform and Python version."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha512
from typing import TypeVar

Item = TypeVar("Item")

_RESERVE = 1 << 96  # below this a draw would be visibly uneven, so more digest is mixed in


class Draws:
    """Choices read off the SHA-512 digest of a key, as the digits of one long number.

    Python promises the same stream across versions for `random.random()` only, not for `randrange` or `choice`;
    a training set that must be byte-identical everywhere needs the stronger promise.
    """

    __slots__ = ("_key", "_refills", "_state")

    def __init__(self, key: str) -> None:
        self._key = key
        self._refills = 0
        self._state = _digest(key)

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        if self._state < _RESERVE:
            self._refills += 1
            self._state = _digest(f"{self._key}#{self._refills}")
        self._state, value = divmod(self._state, bound)
        return value

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, all equally likely."""
        return items[self.below(len(items))]


def _digest(key: str) -> int:
    return int.from_bytes(sha512(key.encode()).digest(), "little")

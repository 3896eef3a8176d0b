"""A long JSON list read entry by entry, so that neither its size nor damage at its end loses the entries before."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHARACTERS = 2**20
"""Read at a time, at least."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class BrokenFileError(ValueError):
    """From here on the file is not what it should be; says why."""


def read_entries(file: Path, on_read: Callable[[int], None] = lambda _: None) -> Iterator[Any]:
    """The entries of a file that holds one JSON list; of a file that holds one JSON object, that object.

    Args:
        file: UTF-8, with a byte order mark or without.
        on_read: is told how many more bytes were read.

    Raises:
        BrokenFileError: while iterating, at the first place that is no such JSON, the entries before it being out.
        OSError: the file cannot be read.
    """
    with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        told = 0

        def read(size: int) -> str:
            nonlocal told
            try:
                text = stream.read(size)
            except UnicodeDecodeError as error:
                raise BrokenFileError("is not UTF-8") from error
            now = raw.tell()
            if now > told:
                on_read(now - told)
            told = now
            return text

        yield from _entries(_Window(read))


def _entries(window: _Window) -> Iterator[Any]:
    if (sign := window.sign()) == "{":
        yield window.value()
    elif sign == "[":
        window.take()
        if window.sign() == "]":
            window.take()
        else:
            yield from _listed(window)
    else:
        raise BrokenFileError("is empty" if not sign else "holds no JSON list")
    if window.sign():
        raise BrokenFileError("goes on after its list")


def _listed(window: _Window) -> Iterator[Any]:
    """The entries behind an opening bracket, up to the closing one."""
    while True:
        yield window.value()
        sign = window.sign()
        if sign not in (",", "]"):
            raise BrokenFileError(
                "has something else than a comma between two rows" if sign else "ends within its list"
            )
        window.take()
        if sign == "]":
            return


class _Window:
    """The part of a text that is looked at: it grows at its end until an entry is whole, and is cut at its start."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read, self._text, self._place = read, "", 0

    def sign(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._place)
            assert found is not None
            self._place = found.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._grow():
                return ""

    def take(self) -> None:
        """Leave the character that `sign` gave behind."""
        self._place += 1

    def value(self) -> Any:
        """The next value; a number at the very end of the window might go on behind it."""
        self.sign()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._grow():
                    continue
                raise BrokenFileError(f"breaks off or is no JSON ({error.msg})") from error
            except (ValueError, RecursionError) as error:
                raise BrokenFileError("has a number of thousands of digits, or is nested thousands deep") from error
            if end < len(self._text) or not self._grow():
                self._place = end
                return value

    def _grow(self) -> bool:
        """As much again, so that what is read in vain is not more than what there is; False at the end."""
        rest = self._text[self._place :]
        more = self._read(max(CHARACTERS, len(rest)))
        self._text, self._place = rest + more, 0
        return bool(more)

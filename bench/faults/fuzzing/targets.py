"""What is fuzzed: every reader of what others wrote, by name."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.drawing import Draw

Case = dict[str, bytes]
"""File name -> contents; what is no file (a request's body, options) is under a name too."""
DEEP = 100_000


class Target(ABC):
    """Some readers under test.

    Class attributes:
        name: of the target.
        mentions: every refusal holds one of these.

    Args:
        folder: an empty one, for the files of cases.
    """

    name: str
    mentions: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def make(self, draw: Draw) -> Case:
        """A case near a valid one; the valid one itself if all decisions are 0."""

    @abstractmethod
    def run(self, case: Case) -> None:
        """Let the readers read it. Whatever else than the two errors of `t3d.errors` comes out is a finding."""

    def shaped(self, value: Any) -> Case | None:
        """A case out of any value of JSON's shape; None where the target has no use for one."""
        return None

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Named cases that are too large, too deep or too sly to be drawn."""
        return iter(())

    def write(self, case: Case) -> None:
        """Put the case's files into the folder."""
        for name, content in case.items():
            (self.folder / name).write_bytes(content)


def json_bombs(valid: Any) -> Iterator[tuple[str, bytes]]:
    """Texts that ask much of a reader of JSON."""
    text = json.dumps(valid).encode()
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        yield f"{opening.decode()} a hundred thousand deep", opening * DEEP + b"1" + closing * DEEP
        yield f"{opening.decode()} never closed", opening * DEEP
    yield "a line of ten megabytes", json.dumps("x" * 10**7).encode()
    yield "a number of a million digits", b"9" * 10**6
    yield "a million zeros", b"[" + b"0," * 10**6 + b"0]"
    yield "valid, then ten megabytes of space", text + b" " * 10**7
    yield "valid twice", text + text
    yield "valid with a byte order mark", b"\xef\xbb\xbf" + text
    yield "valid in UTF-16", text.decode().encode("utf-16")
    yield "nothing", b""
    yield "NUL", b"\0" * 1000
    yield "a pickle", PICKLE
    yield "each name twice", text[:-1] + b"," + text[1:] if text.startswith(b"{") else text


PICKLE = b"cposix\nsystem\n(S'touch t3d-was-here'\ntR."
"""Unpickled, it would run a command; `Judge` sees that `pickle.find_class` was reached."""

"""Whether the lengths that a GGUF file gives fit into it: the gguf package believes each of them.

Of a list that claims 2^60 entries it would make as many, long after the end of the file. The layout is that of ggml's
docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Kind of a number -> its bytes."""
MAX_DIMENSIONS = 8
MAX_NESTING = 4


def check_lengths(path: Path) -> None:
    """Walk through the header.

    Raises:
        OSError: the disk refuses.
        ValueError: not GGUF, or a length that the file has no room for.
    """
    with path.open("rb") as stream:
        header = _Header(stream, path.stat().st_size)
        if header.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        header.read_order()
        num_tensors, num_fields = header.number(8), header.number(8)
        for _ in range(header.fitting(num_fields, 12)):
            header.skip(header.number(8))
            header.skip_value(header.number(4))
        for _ in range(header.fitting(num_tensors, 24)):
            header.skip(header.number(8))
            num_dimensions = header.number(4)
            if num_dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor has {num_dimensions} dimensions")
            header.skip(8 * num_dimensions + 12)


class _Header:
    """The part of a file before its weights.

    Args:
        stream: at its beginning.
        size: of the file, bytes.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left, self._is_little = stream, size, True

    def read_order(self) -> None:
        """Learn from the version how numbers are written."""
        self._is_little = int.from_bytes(self.take(4), "little") & 0xFFFF != 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._left -= self.fitting(count, 1)
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        """Leave out the next bytes."""
        self._left -= self.fitting(count, 1)
        self._stream.seek(count, 1)

    def number(self, size: int) -> int:
        """The next number, of so many bytes."""
        return int.from_bytes(self.take(size), "little" if self._is_little else "big")

    def fitting(self, count: int, size: int) -> int:
        """`count`, if as many entries of at least `size` bytes can follow."""
        if count * size > self._left:
            raise ValueError(f"it gives a length of {count}, and only {self._left} bytes follow")
        return count

    def skip_value(self, kind: int, nesting: int = 0) -> None:
        """Leave out a value of a kind."""
        if kind == STRING:
            self.skip(self.number(8))
        elif kind == ARRAY and nesting < MAX_NESTING:
            self._skip_list(nesting)
        elif kind in SIZES:
            self.skip(SIZES[kind])
        else:
            raise ValueError(f"it has a value of kind {kind}, or lists in lists in lists")

    def _skip_list(self, nesting: int) -> None:
        kind, count = self.number(4), self.number(8)
        if kind in SIZES:
            self.skip(count * SIZES[kind])
            return
        for _ in range(self.fitting(count, 8)):
            self.skip_value(kind, nesting + 1)

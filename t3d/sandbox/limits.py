"""How much a program may use."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from t3d.errors import RequestError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may use; wrong values raise `RequestError` on construction.

    Attributes:
        wall_seconds: from the start of the sandbox to the end of the program.
        cpu_seconds: of one process, all its threads together.
        memory_bytes: address space of one process, and resident memory of all of the program's processes together.
        processes: that live at a time, each thread counted.
        file_bytes: largest file.
        directory_bytes: all files together.
        open_files: of one process.
        output_bytes: printed to standard output, and to standard error.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 2**30
    processes: int = 32
    file_bytes: int = 16 * 2**20
    directory_bytes: int = 64 * 2**20
    open_files: int = 64
    output_bytes: int = 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{field.name} must be more than 0, not {value}")

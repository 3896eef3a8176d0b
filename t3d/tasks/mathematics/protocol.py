"""What goes between a grader and the processes that compare answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

READY = "ready\n"
"""A process that compares answers writes this line once it can."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one comparison may use; a symbolic one can be endless.

    Attributes:
        cpu_seconds: processor time, so that a busy machine changes no verdict.
        wall_seconds: for a process that hardly gets to run.
        memory_bytes: address space of the process.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 300.0
    memory_bytes: int = 2**30


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing an answer with the reference.

    Attributes:
        outcome: as in `t3d.types.Verdict`.
        detail: one line for people.
    """

    outcome: Literal["right", "wrong", "unparsed", "timeout"]
    detail: str = ""

"""A program and its tests: the verdict."""

from __future__ import annotations

import secrets
import signal
import time
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from t3d.errors import RequestError, WorkError
from t3d.sandbox.execution import Execution, execute
from t3d.sandbox.isolation import Isolation, packages
from t3d.sandbox.limits import Limits
from t3d.types import ProgramTests

DEFAULT_LIMITS = Limits()
SHOWN = 60
"""Characters of an output that a detail shows."""


@dataclass(frozen=True, slots=True)
class ProgramOutcome:
    """What became of a program.

    Attributes:
        outcome: "passed", "failed" (an assertion, or the wrong output), "error" (an exception, or no Python), "exit"
            (it left before its tests ended), "timeout", "memory", "processes", "output" (limits), or "tampered" (it
            bent its tests, or wrote what looks like a verdict).
        detail: one line, such as "AssertionError: assert f(2) == 3"; "" if it passed.
        seconds: wall time, sandbox included.
    """

    outcome: str
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all tests ran and held."""
        return self.outcome == "passed"


Failure = tuple[str, str]
"""Outcome and detail."""


def run_tests(
    program: str, tests: ProgramTests, isolation: Isolation, limits: Limits = DEFAULT_LIMITS
) -> ProgramOutcome:
    """Run a program with its test code, then once with each case of input and output; the first failure decides.

    Any number of threads may call it at once.

    Args:
        program: Python.
        tests: the preamble runs before the program, in its namespace; test code after it, in a copy of that; a case's
            expected output never enters the sandbox.
        isolation: of `find_isolation`.
        limits: of each of these runs.

    Raises:
        RequestError: there is nothing to test.
        WorkError: the sandbox failed, not the program.
    """
    if not tests.code and not tests.cases:
        raise RequestError("a program needs tests: give test code, or cases of input and output")
    started = time.monotonic()
    outcome, detail = _failure(program, tests, isolation, limits) or ("passed", "")
    return ProgramOutcome(outcome, detail, time.monotonic() - started)


def _failure(program: str, tests: ProgramTests, isolation: Isolation, limits: Limits) -> Failure | None:
    parts = {"preamble": tests.preamble, "program": program}
    if tests.code:
        found = _run({**parts, "tests": tests.code}, isolation, limits)[0]
        if found != ("passed", ""):
            return found or ("exit", "left before the tests ended")
    for number, (stdin, expected) in enumerate(tests.cases, start=1):
        found, printed = _run({**parts, "tests": None, "stdin": stdin}, isolation, limits)
        found = found or _wrong_output(printed.decode("utf-8", "replace"), expected)
        if found is not None:
            return found[0], f"case {number}: {found[1]}"
    return None


def _run(job: dict[str, Any], isolation: Isolation, limits: Limits) -> tuple[Failure | None, bytes]:
    """What a run reports (None: it came to its end and reported nothing), and what it printed."""
    nonce = secrets.token_hex(16)
    execution = execute({**job, "nonce": nonce, "packages": packages()}, limits, isolation)
    return _reported(execution, nonce, isolation, limits), execution.stdout


def _reported(execution: Execution, nonce: str, isolation: Isolation, limits: Limits) -> Failure | None:
    *lines, unfinished = execution.messages.decode("utf-8", "replace").split("\n")
    if not lines or lines[0] != f"{nonce} started ":
        reason = execution.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise WorkError(
            f"{isolation.description} could not run a program: {reason or execution.stopped or 'no reason'}"
        )
    if execution.stopped is not None:
        return execution.stopped, _over(execution.stopped, limits)
    if unfinished or len(lines) > 2 or not all(line.startswith(f"{nonce} ") for line in lines):
        return "tampered", "wrote to where the verdict is reported"
    if len(lines) == 2:
        _, outcome, detail = lines[1].split(" ", 2)
        return outcome, detail
    return _left(execution.status, limits)


def _left(status: int, limits: Limits) -> Failure | None:
    """Why a program left without a report, by its exit status."""
    if status == 128 + signal.SIGXCPU:
        return "timeout", f"more than {limits.cpu_seconds} s of CPU time"
    if status > 128:
        return "exit", f"killed by signal {status - 128}"
    return ("exit", f"exit status {status}") if status else None


def _over(limit: str, limits: Limits) -> str:
    return {
        "timeout": f"more than {limits.wall_seconds:g} s",
        "memory": f"more than {limits.memory_bytes / 2**20:.0f} MiB",
        "processes": f"more than {limits.processes} processes",
        "output": f"more than {limits.output_bytes / 2**20:g} MiB of output",
    }[limit]


def _wrong_output(printed: str, expected: str) -> Failure | None:
    """White space at the ends of lines and of the whole does not count."""
    ours, theirs = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (printed, expected))
    if ours == theirs:
        return None
    pairs = enumerate(zip_longest(ours, theirs), start=1)
    number, pair = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    shown, wanted = ("nothing" if line is None else repr(line[:SHOWN]) for line in pair)
    return "failed", f"line {number} of the output is {shown}, not {wanted}"

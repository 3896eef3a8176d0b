"""The processes of a sandbox, seen from outside: what they use, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the descendants of a process use together.

    Attributes:
        num_threads: that live, at least one a process.
        memory_bytes: resident; pages that processes share count for each.
    """

    num_threads: int
    memory_bytes: int


def usage_below(pid: int) -> Usage:
    """What the descendants of a process use."""
    num_threads, num_pages = 0, 0
    for each in descendants(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            num_threads += len(os.listdir(f"/proc/{each}/task"))
            num_pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return Usage(num_threads, num_pages * PAGE_BYTES)


def descendants(pid: int) -> list[int]:
    """Process ids of the children, and of theirs; only their own entries of /proc are read, not the machine's."""
    found = children(pid)
    return found + [each for child in found for each in descendants(child)]


def children(pid: int) -> list[int]:
    """Process ids of the children that all threads of a process started; none once it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill all below a process, again as long as there is something, then the process itself if it does not end.

    Args:
        process: leader of its process group.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        below = descendants(process.pid)
        for pid in below:
            kill(pid, spared_group=process.pid)
        if not below or time.monotonic() > deadline:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill(pid: int, spared_group: int) -> None:
    """Kill a process, if it is still there, with its whole group: a fork bomb only ends at once."""
    with contextlib.suppress(ProcessLookupError):
        group = os.getpgid(pid)
        if group == spared_group:
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)

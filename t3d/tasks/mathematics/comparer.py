"""The grader's side of a process that compares answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError
from contextlib import suppress
from multiprocessing.connection import wait
from threading import Lock

from t3d.errors import WorkError
from t3d.tasks.mathematics.protocol import READY, Comparison, Limits


class Comparer:
    """Compares one pair of answers at a time, in a process of its own that is replaced when it dies.

    A plain child process and not `multiprocessing`, which would run the caller's main script again in every child: a
    script without a `__main__` guard could not grade, and one that imports torch would do so in each of them.

    Args:
        limits: of each comparison.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._state = Lock()  # of the two above
        self._busy = Lock()  # held while it compares

    def compare(self, answer: str, reference: str) -> Comparison:
        """Compare two answers; the process starts with the first pair.

        A process that dies gets a successor and the pair a second try: it may have been the machine's lack of memory.

        Raises:
            WorkError: the process does not start.
            CancelledError: the comparer was closed.
        """
        request = json.dumps({"answer": answer, "reference": reference}) + "\n"
        with self._busy:
            return self._ask(request) or self._ask(request) or Comparison("unparsed", "comparing ended the process")

    def close(self) -> None:
        """End the process, whatever it is doing for another thread."""
        with self._state:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        with self._busy:
            if self._process is not None:
                self._reap(self._process)

    def _ask(self, request: str) -> Comparison | None:
        """Send one request and wait for the reply; None if the process died over it."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        is_late, reply = False, ""
        with suppress(BrokenPipeError):  # it died while it was idle
            process.stdin.write(request)
            process.stdin.flush()
            is_late = not wait([process.stdout.fileno()], self._limits.wall_seconds)
            reply = "" if is_late else process.stdout.readline()
        if reply:
            return Comparison(**json.loads(reply))
        exit_code = self._reap(process)
        self._check_open()
        return Comparison("timeout") if is_late or exit_code == -signal.SIGPROF else None

    def _start(self) -> subprocess.Popen[str]:
        """A process that is ready."""
        limits = [str(self._limits.cpu_seconds), str(self._limits.memory_bytes)]
        command = [sys.executable, "-P", "-m", "t3d.tasks.mathematics.worker", *limits]
        with self._state:
            self._check_open()
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # an interrupt from the keyboard is not for it
            )
        assert process.stdout is not None
        if process.stdout.readline() != READY:
            exit_code = self._reap(process)
            self._check_open()
            raise WorkError(f"cannot grade mathematics: `{' '.join(command)}` ended with exit code {exit_code}")
        return process

    def _reap(self, process: subprocess.Popen[str]) -> int:
        """End and forget a process; its exit code."""
        process.kill()
        with suppress(BrokenPipeError), process:  # closes its pipes, waits for its end
            pass
        self._process = None
        return process.returncode

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError

"""One run of one program in a sandbox: start, watch, end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

from t3d.errors import WorkError
from t3d.sandbox.isolation import Isolation, environment
from t3d.sandbox.limits import Limits
from t3d.sandbox.processes import end, usage_below

WATCH_SECONDS = 0.05
"""Between two looks at what the processes use."""
READ_BYTES = 2**16
SOURCES = ("stdout", "stderr", "verdict")


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run ended.

    Attributes:
        stopped: the limit that it was ended for: "timeout", "memory", "processes" or "output"; None if it ended itself.
        status: exit status; 128 + signal if a signal killed the program.
        stdout, stderr: what was printed.
        messages: what came over the verdict socket.
    """

    stopped: str | None
    status: int
    stdout: bytes
    stderr: bytes
    messages: bytes


def execute(job: dict[str, Any], limits: Limits, isolation: Isolation) -> Execution:
    """Run a job of `inside/judge.py`; when this returns, its processes and files are gone.

    Raises:
        WorkError: the sandbox's own program cannot be started.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(isolation.folder())
        request = stack.enter_context(tempfile.TemporaryFile())
        ours, theirs = map(stack.enter_context, socket.socketpair())  # unlike a pipe, /proc cannot open it anew
        confinement = {**asdict(isolation.confinement(folder, limits)), "limits": asdict(limits)}
        request.write(json.dumps({**confinement, "verdict_fd": theirs.fileno(), "job": job}).encode())
        request.seek(0)
        process = _start(isolation.command(limits), request.fileno(), theirs, environment(folder))
        stack.enter_context(process)
        theirs.close()
        watch = _Watch(process, ours, limits, stack.enter_context(selectors.DefaultSelector()))
        try:
            stopped = watch.until_end()
        finally:
            end(process)
        stopped = stopped or watch.read(wait_seconds=0)
        status = process.returncode if process.returncode >= 0 else 128 - process.returncode
        out, err, verdict = (bytes(watch.received[name]) for name in SOURCES)
        return Execution(stopped, status, out, err, verdict)


def _start(
    command: list[str], stdin: int, verdict: socket.socket, variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            cwd="/",
            pass_fds=(verdict.fileno(),),
            start_new_session=True,
            umask=0o022,
        )
    except OSError as error:
        raise WorkError(f"{command[0]}: {error.strerror or error}") from error


class _Watch:
    """Reads what a program prints and reports, and says when it has to be ended."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        verdict: socket.socket,
        limits: Limits,
        selector: selectors.BaseSelector,
    ) -> None:
        self.received = {name: bytearray() for name in SOURCES}
        self._process, self._limits, self._selector = process, limits, selector
        self._deadline = time.monotonic() + limits.wall_seconds
        for name, source in zip(SOURCES, (process.stdout, process.stderr, verdict), strict=True):
            assert source is not None
            os.set_blocking(source.fileno(), False)
            selector.register(source, selectors.EVENT_READ, name)

    def until_end(self) -> str | None:
        """Wait for the end of the process; the limit that it went over if it has to be ended."""
        next_look = time.monotonic() + WATCH_SECONDS
        while self._process.poll() is None:
            over = self.read(WATCH_SECONDS)
            now = time.monotonic()
            if over is None and now > self._deadline:
                over = "timeout"
            if over is None and now > next_look:
                over, next_look = self._over_usage(), now + WATCH_SECONDS
            if over is not None:
                return over
        return None

    def read(self, wait_seconds: float) -> str | None:
        """Read what is there, waiting for it at most so long; "output" if it is more than may be printed."""
        while ready := self._selector.select(wait_seconds):
            wait_seconds = 0
            for key, _ in ready:
                data = os.read(key.fd, READ_BYTES)
                if not data:
                    self._selector.unregister(key.fileobj)
                self.received[key.data] += data
                if len(self.received[key.data]) > self._limits.output_bytes:
                    return "output"
        if not self._selector.get_map():  # all is closed: the end is near
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(WATCH_SECONDS)
        return None

    def _over_usage(self) -> str | None:
        usage = usage_below(self._process.pid)
        if usage.num_threads > self._limits.processes + 1:  # with confine.py
            return "processes"
        return "memory" if usage.memory_bytes > self._limits.memory_bytes else None

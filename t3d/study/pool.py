"""The study's side of its workers: plain child processes that are kept, so that imports and compilation are paid once.

Not `multiprocessing`, whose children would run the caller's main script again (docs/negative-results.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from t3d.study.jobs import CellJob, Request, RolloutJob

PATIENCE_SECONDS = 20.0
"""That workers get to write a checkpoint when the study is interrupted."""


class Workers(Protocol):
    """What does jobs."""

    @property
    def has_idle(self) -> bool:
        """Whether a job can be started."""

    @property
    def is_busy(self) -> bool:
        """Whether a job runs."""

    def start(self, key: str, job: RolloutJob | CellJob) -> None:
        """Start a job, which `key` names."""

    def wait(self) -> list[tuple[str, str | None]]:
        """Wait until jobs end; their names, and why they failed."""


class Pool:
    """Worker processes; a context that ends them.

    Args:
        environments: of each worker, beside this process's own.
        logs: folder for what workers print.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]], logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._workers = [_Worker(each, logs / f"worker-{number}.log") for number, each in enumerate(environments)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all workers; if the study was interrupted, a training may write a checkpoint first."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            for worker in self._workers:
                worker.ask_to_stop()
            for worker in self._workers:
                worker.await_end(PATIENCE_SECONDS)
        for worker in self._workers:
            worker.end()

    @property
    def has_idle(self) -> bool:
        """As `Workers`."""
        return any(worker.key is None for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """As `Workers`."""
        return any(worker.key is not None for worker in self._workers)

    def start(self, key: str, job: RolloutJob | CellJob) -> None:
        """As `Workers`."""
        next(worker for worker in self._workers if worker.key is None).start(key, job)

    def wait(self) -> list[tuple[str, str | None]]:
        """As `Workers`."""
        busy = {worker.replies: worker for worker in self._workers if worker.key is not None}
        return [busy[replies].take_reply() for replies in wait(list(busy)) if isinstance(replies, int)]


class _Worker:
    """One child process, started with its first job, and anew after a job that failed: its state is not known."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        paths = os.pathsep.join(filter(None, sys.path))
        self._environment, self._log = {**os.environ, "PYTHONPATH": paths, **environment}, log
        self._process: subprocess.Popen[str] | None = None
        self.key: str | None = None

    @property
    def replies(self) -> int:
        """The file that a reply comes from."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, key: str, job: RolloutJob | CellJob) -> None:
        self.key = key
        if self._process is None:
            self._process = self._launch()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died while it was idle: there will be no reply
            self._process.stdin.write(Request(job=job).model_dump_json() + "\n")
            self._process.stdin.flush()

    def take_reply(self) -> tuple[str, str | None]:
        """The job that ended, and why it failed."""
        assert self._process is not None
        assert self._process.stdout is not None
        assert self.key is not None
        key, self.key = self.key, None
        reply = self._process.stdout.readline()
        error = (
            json.loads(reply)["error"] if reply else f"its worker ended with exit code {self.end()}; see {self._log}"
        )
        if error is not None:
            self.end()
        return key, error

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def await_end(self, seconds: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def end(self) -> int | None:
        """End the process and what it started; its exit code if it had ended by itself."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        exit_code = self._process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError), self._process:  # closes its pipes, waits for its end
            pass
        self._process = None
        return exit_code

    def _launch(self) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "t3d.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=self._environment,
                process_group=0,  # an interrupt from the keyboard is not for it
            )


def environments(jobs: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """What sets each of `jobs` workers' surroundings apart: devices go round, a thread each.

    Args:
        jobs: workers.
        devices: for CUDA_VISIBLE_DEVICES; none if they compute on the CPU.
    """
    threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return [{**threads, "CUDA_VISIBLE_DEVICES": devices[n % len(devices)] if devices else ""} for n in range(jobs)]

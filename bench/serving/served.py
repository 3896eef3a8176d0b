"""A `t3d serve` of one's own, as a process, and what can be seen of it from outside."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from t3d.versions import versions

ADDRESS = re.compile(r"http://[^\s/]+:\d+")
START_SECONDS = 120.0
POLL_SECONDS = 0.05
LOAD = ("t3d_open", "t3d_running", "t3d_waiting", "t3d_kv_pages_share")
"""What an idle server has none of."""


class Served:
    """A server process on a free port of the loopback interface.

    Args:
        options: of `t3d serve`, the port excepted.

    Attributes:
        url: where it listens.
        lines: the last of what it printed.
    """

    def __init__(self, *options: str) -> None:
        self.command = ["t3d", "serve", *options, "--port", "0"]
        self.lines: deque[str] = deque(maxlen=200)
        self.url = ""

    def __enter__(self) -> Served:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "t3d.cli", *self.command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._is_ready.wait(START_SECONDS)
        if not self.url:
            self._process.kill()
            raise RuntimeError("the server did not start: " + "".join(self.lines))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.terminate()
            self.wait(60)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def rss_mib(self) -> float:
        """Resident memory of the process."""
        with open(f"/proc/{self._process.pid}/status", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def metrics(self) -> dict[str, float]:
        """Prometheus samples, summed over labels: name -> value."""
        found: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def is_healthy(self) -> bool:
        """Whether it says that it is."""
        return httpx.get(f"{self.url}/health", timeout=30).status_code == 200

    def seconds_until_idle(self, at_most: float = 60.0) -> float:
        """Wait until nothing runs, waits, or holds pages of the cache.

        Raises:
            TimeoutError: something still does.
        """
        start = time.monotonic()
        while time.monotonic() - start < at_most:
            found = self.metrics()
            if not any(found[name] for name in LOAD):
                return time.monotonic() - start
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"after {at_most} s the server is not idle: {self.metrics()}")

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        code = self._process.wait(seconds)
        self._reader.join(5)
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if not self.url and (found := ADDRESS.search(line)):
                self.url = found.group()
                self._is_ready.set()
        self._is_ready.set()


def report(script: str, figures: dict[str, Any], out: Path | None) -> None:
    """Print a script's figures with date, device, versions and command; write them to a file if one is asked for."""
    text = json.dumps(
        {
            **figures,
            "date": datetime.date.today().isoformat(),
            "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "versions": versions(),
            "command": " ".join(["python", f"bench/serving/{script}", *sys.argv[1:]]),
        },
        indent=1,
    )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    print(text)

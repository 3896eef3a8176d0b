"""Stages of a measurement: processes with a time limit, and results on disk, so that a second call goes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 20.0
"""With less left a stage is not begun."""

Result = dict[str, Any]
"""What a stage found; `failed` says why it found nothing, or that what it found is wrong."""


class Failed(RuntimeError):
    """A stage did not do its work; the message says why."""


@dataclass(frozen=True)
class Stage:
    """A part of a measurement.

    Attributes:
        name: of its result.
        limit: seconds.
        work: does it within so many seconds; raises `Failed`.
    """

    name: str
    limit: float
    work: Callable[[float], Result]


def run_stages(
    stages: Sequence[Stage], settings: Mapping[str, Any], work: Path, out: Path, budget: float
) -> dict[str, Result]:
    """Run what has no result with these settings yet; `out` holds everything found so far after each stage.

    Args:
        stages: in order.
        settings: that results depend on, ready for JSON.
        work: folder of each stage's result.
        out: JSON file.
        budget: seconds of all stages together.
    """
    for folder in (work, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + budget, {}
    for stage in stages:
        file = work / f"{stage.name}.json"
        result = earlier_result(file, settings)
        if result is None:
            result = {**run_stage(stage, min(stage.limit, end - time.monotonic())), "settings": dict(settings)}
            file.write_text(json.dumps(result, indent=1) + "\n")
        results[stage.name] = result
        out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def earlier_result(file: Path, settings: Mapping[str, Any]) -> Result | None:
    """A stage's result from an earlier call, unless it failed or was asked for something else."""
    try:
        result: Result = json.loads(file.read_text())
    except (OSError, ValueError):  # none, or cut short
        return None
    return result if "failed" not in result and result.get("settings") == settings else None


def run_stage(stage: Stage, limit: float) -> Result:
    """The result of one stage, or why it has none."""
    print(f"== {stage.name}", flush=True)
    begin = time.monotonic()
    if limit < LEAST_SECONDS:
        return {"failed": "no time was left for it: call again"}
    try:
        found = stage.work(limit)
    except Failed as error:
        found = {"failed": str(error)}
    if "failed" in found:
        print(f"   {found['failed']}", flush=True)
    return {**found, "stage_seconds": round(time.monotonic() - begin, 1)}


def start(program: Sequence[str], processes: int, limit: float, work: Path, on_cpu: bool) -> None:
    """Run a Python program in one process, or in several that know each other; what they print goes into a log.

    Raises:
        Failed: it ended with an error, or did not end in time.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", "1" if on_cpu else "4")
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    log = work / "log.txt"
    with log.open("w") as output:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = running.wait(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {limit:.0f} s; {last_lines(log)}") from None
        finally:
            if running.poll() is None:
                end(running)
    if code != 0:
        raise Failed(f"exit code {code}; {last_lines(log)}")


def end(running: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, one by one: those of torchrun have sessions of their own."""
    first = psutil.Process(running.pid)
    for process in (first, *first.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    running.wait()


def last_lines(log: Path, count: int = 25) -> str:
    """The end of what a program said."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])

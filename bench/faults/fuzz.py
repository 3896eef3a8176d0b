"""Bad input to every reader of what others wrote: recipes, prompts, trajectories, models, requests, results.

    python bench/faults/fuzz.py --out bench/results/faults/fuzz.json

Each target in turn is given crafted cases (bombs of every kind), cases of hypothesis and cases of atheris, each in a
process of its own. A case passes that returns, or is refused by one printable line of at most 500 characters that names
the file or the field, within two seconds, without a gigabyte of memory, and without any code run: the interpreter's own
audit events tell of processes, sockets and unpickled names.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fuzzing.engines import ENGINES, TARGETS, fuzz, write_report

PLAN = {
    "prompts": (10_000, 30_000),
    "results": (5_000, 25_000),
    "recipe": (3_000, 8_000),
    "request": (3_000, 8_000),
    "study": (1_000, 2_000),
    "gguf": (1_500, 3_500),
    "trajectories": (1_000, 2_000),
    "model": (1_000, 1_500),
    "upstream-rollouts": (3_000, 8_000),
    "upstream-config": (2_000, 5_000),
}
"""Target -> cases of hypothesis and of atheris."""
SECONDS = 150.0
"""Of computing: a target and engine take at most."""
WALL_SECONDS = 900.0
"""Likewise, on a machine that does other work besides."""
PROCESSES = 2
VERSIONS = (
    "t3d",
    "atheris",
    "hypothesis",
    "pyarrow",
    "pydantic",
    "PyYAML",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "fastapi",
)


def run_all(names: Sequence[str], engines: Sequence[str], scale: float, folder: Path) -> list[dict[str, Any]]:
    """The figures of every target and engine, two at a time."""
    jobs = [(name, engine) for name in names for engine in engines]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return list(pool.map(lambda job: run_one(*job, scale, folder), jobs))


def run_one(name: str, engine: str, scale: float, folder: Path) -> dict[str, Any]:
    """The figures of one target and engine, from a process of its own."""
    own = folder / f"{name}-{engine}"
    own.mkdir(parents=True)
    cases = 0 if engine == "crafted" else max(1, int(PLAN[name][ENGINES.index(engine) - 1] * scale))
    words = ["--worker", name, engine, str(cases), str(own)]
    with (own / "log").open("wb") as log:
        try:
            code: int | str = subprocess.run(
                [sys.executable, __file__, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=WALL_SECONDS,
                env={**os.environ, **ENVIRONMENT},
                cwd=own,
            ).returncode
        except subprocess.TimeoutExpired:
            code = "out of time"
    figures = (
        json.loads((own / "figures.json").read_text())
        if (own / "figures.json").exists()
        else {"cases": 0, "findings": []}
    )
    if code != 0:
        figures["findings"].append({"what": f"its process ended with {code}; see {own}/log"})
    if (own / "t3d-was-here").exists():
        figures["findings"].append({"what": "a command of a case was run"})
    print(
        f"{name} {engine}: {figures['cases']} cases, {len(figures['findings'])} findings", file=sys.stderr, flush=True
    )
    return {"target": name, "engine": engine, "date": now(), **figures}


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
"""No reader may ask a network, and each process has a core."""


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def with_earlier(rows: Sequence[dict[str, Any]], file: Path | None) -> list[dict[str, Any]]:
    """Rows, and in their places those of a result file of what was not run this time."""
    if file is None or not file.exists():
        return list(rows)
    earlier = json.loads(file.read_text())
    by_name = {(row["target"], row["engine"]): {"date": earlier["date"], **row} for row in earlier["rows"]}
    by_name |= {(row["target"], row["engine"]): row for row in rows}
    return [by_name[name, engine] for name in PLAN for engine in ENGINES if (name, engine) in by_name]


def summary(rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What is written down."""
    return {
        "what": "bad input: cases by target and engine, and what was wrong with them",
        "date": now(),
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in VERSIONS},
        "limits": {"seconds_a_case": 2, "characters_of_a_message": 500, "mib_a_case": 1024},
        "seconds": round(seconds, 1),
        "cpu_seconds_of_cases": round(sum(row.get("seconds", 0.0) for row in rows), 1),
        "cases": sum(row["cases"] for row in rows),
        "findings": sum(len(row["findings"]) for row in rows),
        "rows": list(rows),
    }


def main() -> None:
    """Run all, or as a worker one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--targets", default=",".join(PLAN), help="which, by comma; others keep their rows in --out")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which, by comma")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of cases")
    parser.add_argument("--keep", type=Path, help="folder for logs and the first case of each finding")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, engine, cases, folder = options.worker
        fuzz(name, engine, int(cases), SECONDS, Path(folder), write_report(Path(folder) / "figures.json"))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        rows = run_all(
            options.targets.split(","), options.engines.split(","), options.scale, options.keep or Path(scratch)
        )
    found = summary(with_earlier(rows, options.out), time.monotonic() - started)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['cases']} cases in {found['seconds']} s, {found['findings']} findings")
    sys.exit(1 if found["findings"] else 0)


assert set(PLAN) == set(TARGETS)
if __name__ == "__main__":
    main()

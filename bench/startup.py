"""How long `--help` of every command takes: the median of nine new processes each, as JSON.

python bench/startup.py --out bench/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import typer

from t3d.cli import app
from t3d.files import write_whole
from t3d.versions import versions

RUNS = 9
PROGRAM = (sys.executable, "-c", "from t3d.cli import main; main()")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file; default: print it")
    parser.add_argument("--runs", type=int, default=RUNS, help="processes a command")
    arguments = parser.parse_args()
    rows = [measured(words, arguments.runs) for words in commands()]
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "load_before": os.getloadavg()[0]}
    found = json.dumps({"runs": arguments.runs, "machine": machine, "versions": versions(), "commands": rows}, indent=1)
    if arguments.out is None:
        print(found)
    else:
        write_whole(arguments.out, found + "\n")


def commands() -> list[tuple[str, ...]]:
    """The words of every command whose help is ours, the program itself first."""
    found: list[tuple[str, ...]] = [()]
    for name, command in typer.main.get_command(app).commands.items():
        if name != "lm-eval":  # its help is another program's
            found += [(name,), *((name, inner) for inner in getattr(command, "commands", ()))]
    return found


def measured(words: tuple[str, ...], runs: int) -> dict[str, object]:
    """Medians of a command's `--help`: seconds on the clock, and of a core."""
    times = [once(words) for _ in range(runs)]
    wall, cpu = (round(median(column), 4) for column in zip(*times, strict=True))
    return {"command": " ".join(("t3d", *words, "--help")), "seconds": wall, "cpu_seconds": cpu}


def once(words: tuple[str, ...]) -> tuple[float, float]:
    """One new process: its seconds on the clock, and of a core."""
    before, began = os.times(), perf_counter()
    subprocess.run([*PROGRAM, *words, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return perf_counter() - began, spent


if __name__ == "__main__":
    main()

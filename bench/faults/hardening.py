"""All that keeps faults out and rows in, once more and at a reduced size: `make hardening`.

    python bench/faults/hardening.py --out bench/results/faults/hardening.json

Hostile programs against the sandbox, malformed requests and slow and leaving clients against the server, planted
secrets, damaged files, the lock files, kills, bad input and a long run; and the audit of what is locked, where its
service is reached.
Prints one table. Exit code 1 if anything is lost. The scripts beside this one and in `bench/serving` do more of each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from t3d.files import write_whole
from t3d.versions import versions

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-tools" / "bin" / "python"
NOT_DONE = 3
"""Exit code of an audit that reached no service."""
SECONDS = 600
"""A check may take."""
LINES_OF_A_FAILURE = 25
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Counted(NamedTuple):
    """What a command counted: its cases, how many of them were lost, and how many it could not do here."""

    cases: int
    lost: int
    skipped: int = 0


Count = Callable[[Path], Counted]
"""Reads the file that a command wrote."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    Attributes:
        what: is checked.
        command: for this Python, with OUT for the file that it is to write.
        count: reads that file.
    """

    what: str
    command: tuple[str, ...]
    count: Count


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a check.

    Attributes:
        what: was checked.
        how_many: cases; None if the check itself failed before it counted them, or was not done.
        lost: of them.
        seconds: wall time.
        outcome: "ok", perhaps with what was skipped, "FAILED", or why it was not done.
    """

    what: str
    how_many: int | None
    lost: int | None
    seconds: float
    outcome: str


def of_tests(file: Path) -> Counted:
    """Of pytest's report; a skipped test is no case."""
    suite = next(ElementTree.parse(file).iter("testsuite"))
    number = {name: int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")}
    return Counted(number["tests"] - number["skipped"], number["failures"] + number["errors"], number["skipped"])


def of_server(file: Path) -> Counted:
    """Of `bench/serving/faults.py`."""
    parts = json.loads(file.read_text())
    done = [parts["malformed"]["requests"], parts["slow"]["clients"], parts["leaving"]["clients"]]
    failures = [each for name in ("malformed", "slow", "leaving", "sigterm") for each in parts[name]["failures"]]
    return Counted(sum(done) + parts["sigterm"]["requests"], len(failures))


def of_fuzzing(file: Path) -> Counted:
    """Of `fuzz.py`."""
    figures = json.loads(file.read_text())
    return Counted(figures["cases"], figures["findings"])


def of_kills(file: Path) -> Counted:
    """Of `kill.py`."""
    table = json.loads(file.read_text())["commands"].values()
    return Counted(sum(each["kills"] for each in table), sum(len(each["wrong"]) for each in table))


def of_long_runs(file: Path) -> Counted:
    """Of `long.py`; what grew counts as one more that is lost."""
    runs = json.loads(file.read_text())["runs"].values()
    return Counted(sum(each["total"] for each in runs), sum(each["lost"] + bool(each["grew"]) for each in runs))


def tests(what: str, *files: str) -> Check:
    """A check by test files."""
    return Check(what, ("-m", "pytest", *(f"tests/{file}.py" for file in files), "--junit-xml", "OUT"), of_tests)


FEW = ("--engines", "crafted,hypothesis", "--targets", "request,recipe,prompts,trajectories", "--scale", "0.1")
THREE_EACH = ("--kills", "3", "--what", "rollout,train,eval")
SHORT = ("--answers", "12000", "--steps", "400")
CHECKS = (
    tests("hostile programs in the sandbox", "test_sandbox"),
    tests("secrets planted", "test_secrets"),
    tests("files damaged", "test_torn_files"),
    tests("lock files", "test_supply"),
    Check("malformed requests, slow and leaving clients", ("bench/serving/faults.py", "--out", "OUT"), of_server),
    Check("kills", ("bench/faults/kill.py", *THREE_EACH, "--out", "OUT"), of_kills),
    Check("a long run", ("bench/faults/long.py", *SHORT, "--out", "OUT"), of_long_runs),
    Check("bad input", ("bench/faults/fuzz.py", *FEW, "--out", "OUT"), of_fuzzing),
)


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    out = parser.parse_args().out
    rows = []
    for check in CHECKS:
        print(f"{check.what} ...", file=sys.stderr, flush=True)
        rows.append(run(check))
    rows.append(audit())
    print(table(rows))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(record(rows), indent=1) + "\n")
    sys.exit(any(row.outcome == "FAILED" for row in rows))


def run(check: Check) -> Row:
    """Do a check; show the end of what it printed if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out"
        words = [str(file) if word == "OUT" else word for word in check.command]
        code, printed = execute([sys.executable, *words])
        seconds = round(time.monotonic() - started, 1)
        try:
            how_many, lost, skipped = check.count(file)
        except (OSError, ValueError, KeyError, StopIteration, ElementTree.ParseError) as error:
            show(printed, f"{check.what}: no figures: {error!r}, exit code {code}")
            return Row(check.what, None, None, seconds, "FAILED")
    if code == 0 and how_many and not lost:
        return Row(check.what, how_many, lost, seconds, f"ok, {skipped} skipped" if skipped else "ok")
    show(printed, f"{check.what}: exit code {code}")
    return Row(check.what, how_many, lost, seconds, "FAILED")


def audit() -> Row:
    """Known vulnerabilities of what is locked, in the environment that `make` installs for that."""
    what = "known vulnerabilities of locked packages"
    if not TOOLS.exists():
        return Row(what, None, None, 0.0, "not done: make audit installs what it needs")
    started = time.monotonic()
    code, printed = execute([str(TOOLS), "requirements/audit.py"])
    seconds, last = round(time.monotonic() - started, 1), printed.strip().rpartition("\n")[2]
    if code == NOT_DONE:
        return Row(what, None, None, seconds, f"not done: {last}")
    if code:
        show(printed, what)
    return Row(what, int(last.split()[1]), int(bool(code)), seconds, "FAILED" if code else "ok")


def execute(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and all that was printed; 124 if it took too long."""
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 124, f"more than {SECONDS} s"
    return ran.returncode, ran.stdout


def show(printed: str, headline: str) -> None:
    """The end of what a command printed, on stderr."""
    print(f"--- {headline}", *printed.splitlines()[-LINES_OF_A_FAILURE:], "---", sep="\n", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """What, how many, lost, seconds."""
    cells = [("what", "how many", "lost", "seconds", "")]
    for row in rows:
        numbers = ("-" if number is None else f"{number:,}" for number in (row.how_many, row.lost))
        cells.append((row.what, *numbers, f"{row.seconds:.1f}", row.outcome))
    wide = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        f"{line[0]:<{wide[0]}}  " + "  ".join(f"{line[i]:>{wide[i]}}" for i in (1, 2, 3)) + f"  {line[4]}".rstrip()
        for line in cells
    )


def record(rows: Sequence[Row]) -> dict[str, Any]:
    """What is written down."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(sum(row.seconds for row in rows), 1),
        "checks": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()

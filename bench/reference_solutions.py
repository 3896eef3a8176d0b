"""Grade the reference solutions of a benchmark of programs: all must pass, or the sandbox is at fault.

    python bench/reference_solutions.py --benchmark humaneval --data humaneval.jsonl --sandbox unshare

Each solution goes the way of a model's response: the task's own grader, in the sandbox. The result is one JSON file
with a row for each run.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from t3d.bench.result_file import ResultFile
from t3d.tasks import GraderOptions, get_task
from t3d.types import Problem, Verdict


@dataclass(frozen=True, slots=True)
class Run:
    """All reference solutions of a benchmark in one isolation.

    Attributes:
        num_right: of `num_problems`.
        verdicts: outcome -> how many.
        seconds: wall time of all, `num_workers` at a time.
        failures: problem -> what its reference solution came to.
    """

    benchmark: str
    isolation: str
    grader: str
    num_problems: int
    num_right: int
    verdicts: dict[str, int]
    num_workers: int
    seconds: float
    failures: dict[str, str]


def main() -> None:
    """Parse arguments, grade, write the result; exit status 1 if a solution failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", action="append", required=True, choices=("humaneval", "mbpp"))
    parser.add_argument("--data", action="append", help="file, one for each benchmark; default: from the hub")
    parser.add_argument("--sandbox", action="append", help="as of t3d eval, repeatable; default: auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("reference-solutions.json"))
    arguments = parser.parse_args()
    note = "every problem of every split; seconds are the wall time of grading"
    command = shown_command(sys.argv, {*(arguments.data or ()), str(arguments.out)})
    result: ResultFile[Run] = ResultFile(arguments.out, command, torch.device("cpu"), None, note)
    data = arguments.data or [None] * len(arguments.benchmark)
    for run in runs(
        dict(zip(arguments.benchmark, data, strict=True)), arguments.sandbox or ["auto"], arguments.workers
    ):
        result.add(run)
        print(f"{run.benchmark:<10} {run.isolation:<32} {run.num_right}/{run.num_problems}  {run.seconds:.1f} s")
        for problem_id, reason in run.failures.items():
            print(f"  {problem_id}: {reason}")
    sys.exit(any(run.failures for run in result.rows))


def shown_command(words: list[str], files: set[str]) -> str:
    """What was typed, `files` without their folders."""
    return " ".join(["python", *(Path(word).name if word in files else word for word in words)])


def runs(data_of: dict[str, str | None], sandboxes: list[str], num_workers: int) -> Iterator[Run]:
    """Each benchmark in each isolation."""
    for benchmark, data in data_of.items():
        for sandbox in sandboxes:
            yield graded(benchmark, data, GraderOptions(num_workers, sandbox))


def graded(benchmark: str, data: str | None, options: GraderOptions) -> Run:
    """All reference solutions of a benchmark."""
    task = get_task(benchmark, data)
    problems = task.problems("all")
    with task.grader(options) as grader:
        started = time.monotonic()
        futures = [grader.submit(problem.solution or "", problem) for problem in problems]
        verdicts = [future.result() for future in futures]
        seconds = time.monotonic() - started
        assert grader.isolation is not None
        assert options.num_workers is not None
        return Run(
            benchmark,
            grader.isolation,
            grader.version,
            len(problems),
            sum(verdict.right for verdict in verdicts),
            dict(collections.Counter(verdict.outcome for verdict in verdicts)),
            options.num_workers,
            round(seconds, 1),
            failures(problems, verdicts),
        )


def failures(problems: list[Problem], verdicts: list[Verdict]) -> dict[str, str]:
    """What the solutions that did not pass came to."""
    pairs = zip(problems, verdicts, strict=True)
    return {each.problem_id: f"{found.outcome}: {found.detail}" for each, found in pairs if not found.right}


if __name__ == "__main__":
    main()

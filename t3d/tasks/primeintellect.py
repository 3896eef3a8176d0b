"""Programming problems of PrimeIntellect, as TraceRL published them (Wang et al. 2025, arXiv 2509.06949)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs import INSTRUCTION, ProgramGrader
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row, shown
from t3d.types import Problem, ProgramTests

INTRODUCTION = "This is the problem:\n"
READS_AND_PRINTS = (
    "You should put your code in ```python ```. Use input() to read input and print() to produce output in your script."
)
"""How the public T3D code asks for a program that reads and prints (`sample/sdar_sample.py`)."""


class PrimeIntellectTask(RowTask):
    """Problems to roll out. They have no held-out split: what is learned from them is measured on other benchmarks.

    How a program is asked for hangs on the row, so that it is part of each question.
    """

    name = "primeintellect"
    hub = HubDataset("Gen-Verse/PrimeIntellect", splits=("train",))
    form = PromptConfig()
    test_split = "train"
    max_new_tokens = 2048

    def problem_of(self, row: Row) -> Problem:
        """From `question`; where `test_method` is stdio, `test_input` and `test_output`, else `test_list` and, if there
        is one, `prefix`, the head of the function; `solution` and `id` if there are any.
        """
        reads = _reads_and_prints(row)
        return Problem(
            problem_id=row.own_id("id"),
            question=f"{INTRODUCTION}{row.text('question').strip()}\n{READS_AND_PRINTS if reads else INSTRUCTION}",
            tests=ProgramTests(cases=_cases(row)) if reads else ProgramTests("\n".join(row.texts("test_list"))),
            prefix=row.text("prefix", may_be_blank=True) if not reads and row.has("prefix") else "",
            solution=row.text("solution").rstrip() if row.has("solution") else None,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """Runs the program on its inputs, or with its tests."""
        return ProgramGrader(options)


def _reads_and_prints(row: Row) -> bool:
    method = row.text("test_method") if row.has("test_method") else "function"
    if method not in ("stdio", "function"):
        raise RequestError(f"{row.where}: `test_method` must be stdio or function, not {shown(method)}")
    return method == "stdio"


def _cases(row: Row) -> tuple[tuple[str, str], ...]:
    """(standard input, expected output) of each."""
    given, expected = row.texts("test_input"), row.texts("test_output")
    if len(given) != len(expected):
        raise RequestError(
            f"{row.where}: `test_input` and `test_output` must be of one length, not {len(given)} and {len(expected)}"
        )
    return tuple(zip(given, expected, strict=True))

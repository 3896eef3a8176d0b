"""HumanEval: 164 functions to complete (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs import INSTRUCTION, ProgramGrader
from t3d.tasks.programs.instruction import CLOSING_FENCE, FENCE
from t3d.tasks.sources import HubDataset, Row, make_problems, read_rows
from t3d.types import Problem, ProgramTests

HUB = HubDataset("openai/openai_humaneval", splits=("test",))


class HumanEvalTask:
    """The head of a function with its docstring; the response goes on from that head.

    Args:
        data: file with the benchmark's own fields, or hub id; None takes the hub's.
    """

    name = "humaneval"
    form = PromptConfig(instruction=INSTRUCTION)
    test_split = "test"
    max_new_tokens = 512
    default_limit: int | None = None

    def __init__(self, data: str | None = None) -> None:
        self._data = data

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `count` problems of a split, in the benchmark's order; `seed` chooses nothing."""
        return make_problems(read_rows(self._data, HUB, split), _problem)[:count]

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """Runs the completed function."""
        return ProgramGrader(options)


def _problem(row: Row) -> Problem:
    head = row.text("prompt")
    test, entry_point = row.text("test"), row.text("entry_point")
    return Problem(
        row.text("task_id"),
        f"Complete the following Python function.\n{head.strip()}",
        tests=ProgramTests(f"{test}\ncheck({entry_point})\n", preamble=head),
        prefix=FENCE + head,
        solution=row.text("canonical_solution").rstrip() + CLOSING_FENCE,
    )

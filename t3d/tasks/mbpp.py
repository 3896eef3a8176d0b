"""MBPP: 974 short programs from a description and three tests (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs import INSTRUCTION, ProgramGrader
from t3d.tasks.programs.instruction import CLOSING_FENCE, FENCE
from t3d.tasks.sources import HubDataset, Row, make_problems, read_rows
from t3d.types import Problem, ProgramTests

HUB = HubDataset("google-research-datasets/mbpp", "full", ("train", "test", "validation", "prompt"))


class MBPPTask:
    """A description with the tests to pass; the split `test` is the 500 problems that papers report.

    Args:
        data: file with the benchmark's own fields, or hub id; None takes the hub's.
    """

    name = "mbpp"
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
        """Runs the program and the tests that the question shows."""
        return ProgramGrader(options)


def _problem(row: Row) -> Problem:
    """The question is the benchmark's own prompt (Austin et al. 2021, figure 1)."""
    description, tests = row.text("text").strip(), "\n".join(row.texts("test_list"))
    return Problem(
        f"MBPP/{row.own_id('task_id')}",
        f"You are an expert Python programmer, and here is your task: {description} "
        f"Your code should pass these tests:\n\n{tests}\n",
        tests=ProgramTests(f"{row.text('test_setup_code', may_be_blank=True)}\n{tests}\n"),
        prefix=FENCE,
        solution=row.text("code").rstrip() + CLOSING_FENCE,
    )

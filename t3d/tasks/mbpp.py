"""MBPP: 974 short programs from a description and three tests (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs import INSTRUCTION, ProgramGrader
from t3d.tasks.programs.instruction import CLOSING_FENCE, FENCE
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row
from t3d.types import Problem, ProgramTests


class MBPPTask(RowTask):
    """A description with the tests to pass; the split `test` is the 500 problems that papers report."""

    name = "mbpp"
    hub = HubDataset("google-research-datasets/mbpp", "full", ("train", "test", "validation", "prompt"))
    form = PromptConfig(instruction=INSTRUCTION)
    max_new_tokens = 512

    def problem_of(self, row: Row) -> Problem:
        """From the benchmark's own fields; the question is its own prompt (Austin et al. 2021, figure 1)."""
        description, tests = row.text("text").strip(), "\n".join(row.texts("test_list"))
        return Problem(
            f"MBPP/{row.own_id('task_id')}",
            f"You are an expert Python programmer, and here is your task: {description} "
            f"Your code should pass these tests:\n\n{tests}\n",
            tests=ProgramTests(f"{row.text('test_setup_code', may_be_blank=True)}\n{tests}\n"),
            prefix=FENCE,
            solution=row.text("code").rstrip() + CLOSING_FENCE,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """Runs the program and the tests that the question shows."""
        return ProgramGrader(options)

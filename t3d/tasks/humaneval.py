"""HumanEval: 164 functions to complete (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs import INSTRUCTION, ProgramGrader
from t3d.tasks.programs.instruction import CLOSING_FENCE, FENCE
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row
from t3d.types import Problem, ProgramTests


class HumanEvalTask(RowTask):
    """The head of a function with its docstring; the response goes on from that head."""

    name = "humaneval"
    hub = HubDataset("openai/openai_humaneval", splits=("test",))
    form = PromptConfig(instruction=INSTRUCTION)
    max_new_tokens = 512

    def problem_of(self, row: Row) -> Problem:
        """From the benchmark's own fields."""
        head = row.text("prompt")
        test, entry_point = row.text("test"), row.text("entry_point")
        return Problem(
            row.text("task_id"),
            f"Complete the following Python function.\n{head.strip()}",
            tests=ProgramTests(f"{test}\ncheck({entry_point})\n", preamble=head),
            prefix=FENCE + head,
            solution=row.text("canonical_solution").rstrip() + CLOSING_FENCE,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """Runs the completed function."""
        return ProgramGrader(options)

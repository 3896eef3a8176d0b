"""The training problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874) as TraceRL published them (2509.06949)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.mathematics import INSTRUCTION, MathGrader
from t3d.tasks.mathematics.worked import end_in_box
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row
from t3d.types import Problem


class MathTrainTask(RowTask):
    """Problems to roll out. They have no held-out split: what is learned from them is measured on `math500`."""

    name = "math-train"
    hub = HubDataset("Gen-Verse/MATH_train", splits=("train",))
    form = PromptConfig(instruction=INSTRUCTION)
    test_split = "train"
    max_new_tokens = 2048

    def problem_of(self, row: Row) -> Problem:
        """From `question` and `ground_truth_answer`; `solution` and `id` if there are any."""
        answer = row.scalar("ground_truth_answer").strip()
        return Problem(
            problem_id=row.own_id("id"),
            question=row.text("question").strip(),
            answer=answer,
            solution=end_in_box(row.text("solution").strip(), answer) if row.has("solution") else None,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The grader of mathematics."""
        return MathGrader(options)

"""MATH500: 500 problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874), chosen by Lightman et al. (2305.20050)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.mathematics import INSTRUCTION, MathGrader, extract_answer
from t3d.tasks.mathematics.worked import end_in_box
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row
from t3d.types import Problem


class Math500Task(RowTask):
    """Problems of MATH500, or of any data set in the form of MATH."""

    name = "math500"
    hub = HubDataset("HuggingFaceH4/MATH-500", splits=("test",))
    form = PromptConfig(instruction=INSTRUCTION)
    max_new_tokens = 2048

    def problem_of(self, row: Row) -> Problem:
        """From `problem`; `answer`, or a `solution` that boxes it (as in MATH's own train split); `unique_id` if there
        is one.
        """
        question = row.text("problem").strip()
        worked = row.text("solution").strip() if row.has("solution") else None
        answer = row.scalar("answer") if row.has("answer") else extract_answer(worked or "")
        if answer is None:
            raise RequestError(f"{row.where}: neither `answer` nor a `solution` that boxes one")
        return Problem(
            problem_id=row.own_id("unique_id"),
            question=question,
            answer=answer,
            solution=end_in_box(worked, answer) if worked else None,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The grader of mathematics."""
        return MathGrader(options)

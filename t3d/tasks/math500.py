"""MATH500: 500 problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874), chosen by Lightman et al. (2305.20050)."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.mathematics import INSTRUCTION, MathGrader, extract_answer
from t3d.tasks.mathematics.worked import end_in_box
from t3d.tasks.sources import HubDataset, Row, make_problems, read_rows
from t3d.types import Problem

HUB = HubDataset("HuggingFaceH4/MATH-500", splits=("test",))


class Math500Task:
    """Problems of MATH500, or of any data set in the form of MATH.

    A row holds `problem`; `answer`, or a `solution` that boxes it (as in MATH's own train split); `unique_id` if it has
    one.

    Args:
        data: file or hub id; None is the hub's `HuggingFaceH4/MATH-500`.
    """

    name = "math500"
    form = PromptConfig(instruction=INSTRUCTION)
    test_split = "test"
    max_new_tokens = 2048
    default_limit: int | None = None

    def __init__(self, data: str | None = None) -> None:
        self._data = data

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `count` problems of a split, in the source's order; `seed` chooses nothing."""
        return make_problems(read_rows(self._data, HUB, split), _problem)[:count]

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The grader of mathematics."""
        return MathGrader(options)


def _problem(row: Row) -> Problem:
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

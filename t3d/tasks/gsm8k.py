"""GSM8K: word problems of grade school mathematics (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.mathematics import INSTRUCTION, MathGrader
from t3d.tasks.mathematics.worked import end_in_box
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import HubDataset, Row
from t3d.types import Problem

_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""Marks such as <<2*9=18>>, which the authors' models called a calculator with."""


class GSM8KTask(RowTask):
    """Problems of GSM8K."""

    name = "gsm8k"
    hub = HubDataset("openai/gsm8k", "main", splits=("train", "test"))
    form = PromptConfig(instruction=INSTRUCTION)
    max_new_tokens = 1024

    def problem_of(self, row: Row) -> Problem:
        """From `question` and either `answer` as on the hub (the worked solution, then "#### 18"), or `answer` (18) and
        `solution_raw` or `solution` (the worked solution); `id` if there is one.
        """
        worked, marker, answer = row.scalar("answer").rpartition("####")
        if not marker:
            worked = next((row.text(name) for name in ("solution_raw", "solution") if row.has(name)), "")
            worked = worked.partition("####")[0]
        answer, worked = answer.strip().replace(",", ""), _CALCULATOR.sub("", worked).strip()
        if not answer:
            raise RequestError(f"{row.where}: `answer` gives no answer after ####")
        return Problem(
            problem_id=row.own_id("id"),
            question=row.text("question").strip(),
            answer=answer,
            solution=end_in_box(worked, answer) if worked else None,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The grader of mathematics."""
        return MathGrader(options)

"""The built-in task as the rest of the package sees it."""

from __future__ import annotations

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, DirectGrader, Grader, GraderOptions
from t3d.tasks.story.examples import make
from t3d.tasks.story.grader import extract_answer, judge
from t3d.types import Problem

GRADER_VERSION = "story 1: the number after the last ####"


class StoryTask:
    """Word problems drawn by (split, seed, index).

    Args:
        data: None: the task draws its problems itself.
    """

    name = "story"
    form = PromptConfig(style="plain")
    test_split = "test"
    max_new_tokens = 160
    default_limit: int | None = 1000
    is_endless = True

    def __init__(self, data: str | None = None) -> None:
        if data is not None:
            raise RequestError("task story draws its own problems: leave data out")

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `count` problems of a split."""
        if count is None:
            raise RequestError(
                "task story is endless: say how many problems (--limit, or count in a recipe), and leave shuffle out"
            )
        return [
            Problem(each.prompt_id, each.question, answer=str(each.problem.answer), solution=each.response)
            for each in make(split, count, seed)
        ]

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The exact grader: it needs no workers and no sandbox."""
        return DirectGrader(GRADER_VERSION, judge, extract_answer)

"""Tasks: where prompts come from and how answers are graded.

A new task is one new package and one line in `TASKS`.
"""

from __future__ import annotations

from typing import Protocol

from t3d.errors import RequestError
from t3d.tasks.prompts import read_prompts
from t3d.tasks.story.task import StoryTask
from t3d.types import Prompt

__all__ = ["TASKS", "Task", "get_task", "read_prompts"]


class Task(Protocol):
    """A source of graded prompts; item i of a split depends on (split, seed, i) only, never on `count`."""

    name: str

    def prompts(self, split: str, count: int, seed: int) -> list[Prompt]:
        """The first `count` prompts of a split, with their answers."""

    def documents(self, split: str, count: int, seed: int) -> list[tuple[Prompt, str]]:
        """The same prompts, each with a good response text (for supervised training; the eos token follows)."""

    def grade(self, response_text: str, answer: str) -> bool:
        """Whether a response is right."""

    def extract_answer(self, response_text: str) -> str | None:
        """What a response gives as its answer, for `grade` to hold another response against; None if it gives none."""


TASKS: dict[str, Task] = {"story": StoryTask()}


def get_task(name: str) -> Task:
    """The task of that name."""
    if name not in TASKS:
        raise RequestError(f"unknown task {name!r}: choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name]

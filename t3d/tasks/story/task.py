"""The built-in task as the rest of the package sees it."""

from __future__ import annotations

from t3d.tasks.story.examples import Example, make
from t3d.tasks.story.grader import extract_answer, grade
from t3d.types import Prompt


class StoryTask:
    """Word problems drawn by (split, seed, index)."""

    name = "story"

    def prompts(self, split: str, count: int, seed: int) -> list[Prompt]:
        """The first `count` questions of a split, with their answers."""
        return [_prompt(example) for example in make(split, count, seed)]

    def documents(self, split: str, count: int, seed: int) -> list[tuple[Prompt, str]]:
        """The same questions, each with one of its many good worked answers."""
        return [(_prompt(example), example.response) for example in make(split, count, seed)]

    def grade(self, response_text: str, answer: str) -> bool:
        """Whether the number after the last `####` is the answer."""
        return grade(response_text, answer)

    def extract_answer(self, response_text: str) -> str | None:
        """The number after the last `####`."""
        return extract_answer(response_text)


def _prompt(example: Example) -> Prompt:
    return Prompt(example.prompt_id, example.prompt, str(example.problem.answer))

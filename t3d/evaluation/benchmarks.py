"""Benchmarks by name. A new one is a line in `BENCHMARKS`."""

from __future__ import annotations

from dataclasses import dataclass

from t3d.errors import RequestError
from t3d.tasks import get_task
from t3d.types import Prompt


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task's held-out problems.

    Attributes:
        name: in `BENCHMARKS`.
        task: a name in `t3d.tasks.TASKS`.
        split: of the task.
        max_new_tokens: longest answer worth waiting for.
        default_limit: problems to run unless told otherwise.
    """

    name: str
    task: str
    split: str
    max_new_tokens: int
    default_limit: int

    def prompts(self, limit: int | None, seed: int) -> list[Prompt]:
        """The first `limit` problems of a seed; always the same ones."""
        return get_task(self.task).prompts(self.split, limit or self.default_limit, seed)

    def grade(self, response_text: str, answer: str) -> bool:
        """Whether a response is right."""
        return get_task(self.task).grade(response_text, answer)


BENCHMARKS: dict[str, Benchmark] = {
    "story": Benchmark("story", task="story", split="test", max_new_tokens=160, default_limit=1000)
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in BENCHMARKS:
        raise RequestError(f"benchmark {name!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]

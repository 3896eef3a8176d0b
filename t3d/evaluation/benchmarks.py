"""Benchmarks by name: every task is one, by the split that it is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from t3d.errors import RequestError
from t3d.tasks import TASKS, Task, get_task, take_problems
from t3d.types import Problem


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task's held-out problems.

    Attributes:
        task: gives problems, their form and their grader.
        split: of the task.
        data: where the problems come from: a file or hub id; None is the task's own source.
    """

    task: Task
    split: str
    data: str | None = None

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def problems(self, limit: int | None = None, shuffle: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `limit` problems, at least one; always the same ones.

        Args:
            limit: None takes the task's default.
            shuffle: seed of the order that they are taken from; None is the source's own.
            seed: chooses the problems of an endless task.

        Raises:
            RequestError: no such data or split, or an endless task and `shuffle`.
        """
        return take_problems(self.task, self.split, limit or self.task.default_limit, shuffle, seed)


def _of_task(name: str, data: str | None = None) -> Benchmark:
    task = get_task(name, data)
    return Benchmark(task, task.test_split, data)


BENCHMARKS: dict[str, Callable[[str | None], Benchmark]] = {name: partial(_of_task, name) for name in TASKS}
"""Name -> benchmark, made from `data`: a file or hub id; None takes the task's own source."""


def get_benchmark(name: str, data: str | None = None) -> Benchmark:
    """The benchmark of that name.

    Args:
        name: in `BENCHMARKS`.
        data: file or hub id, in place of the task's own source.

    Raises:
        RequestError: there is none, or its task takes no data, or needs some. Data are read later.
    """
    if name not in BENCHMARKS:
        raise RequestError(f"benchmark {name!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](data)

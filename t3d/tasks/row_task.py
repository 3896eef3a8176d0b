"""Tasks whose problems are rows of a file or of the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

from t3d.errors import RequestError
from t3d.tasks.base import Task
from t3d.tasks.sources import HubDataset, Row, read_rows
from t3d.types import Problem


class RowTask(Task, ABC):
    """A task that makes a problem of each row.

    A row's field `split`, where it has one, says which split it belongs to; fields that are not asked for are ignored.

    Class attributes:
        hub: the task's own source; None if it has none, and needs data.

    Args:
        data: file or hub id of rows with the same fields; None takes `hub`.
    """

    hub: ClassVar[HubDataset | None] = None
    test_split = "test"
    default_limit = None
    is_endless = False

    def __init__(self, data: str | None = None) -> None:
        self.data = data
        self._problems: dict[str, list[Problem]] = {}

    @abstractmethod
    def problem_of(self, row: Row) -> Problem:
        """The problem of a row.

        Raises:
            RequestError: the row is not as it should be.
        """

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `count` problems of a split, in the source's order, read once; `seed` chooses nothing."""
        if split not in self._problems:
            self._problems[split] = make_problems(read_rows(self.data, self.hub, split), self.problem_of)
        return self._problems[split][:count]


def make_problems(rows: Iterable[Row], problem_of: Callable[[Row], Problem]) -> list[Problem]:
    """The problem of each row.

    Raises:
        RequestError: what `problem_of` raises; or two problems of one id.
    """
    first_of: dict[str, str] = {}
    problems = []
    for row in rows:
        problems.append(problem := problem_of(row))
        first = first_of.setdefault(problem.problem_id, row.where)
        if first != row.where:
            raise RequestError(
                f"{row.where}: id {problem.problem_id!r} is already used in {first.split(', ')[-1]}; give each its own"
            )
    return problems

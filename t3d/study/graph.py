"""What a study has to do, in which order: tasks with needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["rollouts", "tune", "teacher", "test", "equal time"]


@dataclass(frozen=True, slots=True)
class Task:
    """Something that a worker does in one go.

    Attributes:
        key: names it, such as "test/t3d/seed-1".
        kind: roll the teacher out; train and validate with one learning rate; test the teacher; train with the chosen
            rate and test; the same for as long as another method.
        variant: method or ablation; "" where there is none.
        seed: of the study.
        lr: of a "tune".
        needs: keys of tasks that must be over, done or failed.
    """

    key: str
    kind: TaskKind
    variant: str = ""
    seed: int = 0
    lr: float | None = None
    needs: tuple[str, ...] = ()


class Graph:
    """Which tasks are over, which run, which may begin.

    Args:
        tasks: those that come first begin first; needs stand before what needs them.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.key: task for task in tasks}
        for task in tasks:
            unknown = [key for key in task.needs if key not in self._tasks]
            if unknown:
                raise ValueError(f"{task.key} needs {unknown[0]}, which is no task")
        self._running: set[str] = set()
        self.errors: dict[str, str | None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, key: str) -> Task:
        return self._tasks[key]

    @property
    def tasks(self) -> list[Task]:
        """All of them, in order."""
        return list(self._tasks.values())

    @property
    def is_over(self) -> bool:
        """Whether every task is done or failed."""
        return len(self.errors) == len(self._tasks)

    @property
    def failures(self) -> dict[str, str]:
        """Key -> error of the tasks that failed."""
        return {key: error for key, error in self.errors.items() if error is not None}

    def ready(self) -> list[Task]:
        """The tasks that may begin, in order."""
        return [
            task
            for key, task in self._tasks.items()
            if key not in self.errors and key not in self._running and all(need in self.errors for need in task.needs)
        ]

    def begin(self, key: str) -> None:
        """A task runs from now on."""
        self._running.add(key)

    def end(self, key: str, error: str | None) -> None:
        """A task is over; `error` says why it failed, None that it is done."""
        self._running.discard(key)
        self.errors[key] = error

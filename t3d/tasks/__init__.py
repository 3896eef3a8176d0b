"""Tasks: where questions come from and how answers are graded.

A new task is one new file or package and one line in `TASKS`. If its problems are rows of a file or of the hub, it is a
`t3d.tasks.row_task.RowTask`.
"""

from __future__ import annotations

from collections.abc import Callable

from t3d.errors import RequestError
from t3d.tasks.base import Grader, GraderOptions, Task, choose, take_problems
from t3d.tasks.gsm8k import GSM8KTask
from t3d.tasks.humaneval import HumanEvalTask
from t3d.tasks.jsonl import JsonlTask
from t3d.tasks.math500 import Math500Task
from t3d.tasks.math_train import MathTrainTask
from t3d.tasks.mbpp import MBPPTask
from t3d.tasks.primeintellect import PrimeIntellectTask
from t3d.tasks.story.task import StoryTask

__all__ = ["TASKS", "Grader", "GraderOptions", "Task", "choose", "get_task", "take_problems"]


TASKS: dict[str, Callable[[str | None], Task]] = {
    "story": StoryTask,
    "gsm8k": GSM8KTask,
    "math500": Math500Task,
    "humaneval": HumanEvalTask,
    "mbpp": MBPPTask,
    "math-train": MathTrainTask,
    "primeintellect": PrimeIntellectTask,
    "jsonl": JsonlTask,
}
"""Name -> task, made from `data`: a file or hub id; None takes the task's own source."""


def get_task(name: str, data: str | None = None) -> Task:
    """The task of that name.

    Args:
        name: in `TASKS`.
        data: JSON Lines, JSON or Parquet file, or hub id, in place of the task's own source.

    Raises:
        RequestError: there is no such task, or it takes no data, or needs some. Data are read later.
    """
    if name not in TASKS:
        raise RequestError(f"unknown task {name!r}: choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name](data)

"""Progress of long commands: a live bar with rate and estimate on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from t3d.errors import tell

SECONDS_BETWEEN_LINES = 5.0


class Reporter(Protocol):
    """What a long loop calls."""

    def advance(self, amount: int = 1, **values: float | str) -> None:
        """`amount` more units are done; `values` are shown beside the bar."""


class _Rate(ProgressColumn):
    """Units a second, lately."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


class _Bar:
    def __init__(self, bar: RichProgress, task_id: int) -> None:
        self._bar, self._task_id = bar, task_id

    def advance(self, amount: int = 1, **values: float | str) -> None:
        if values:
            self._bar.update(self._task_id, values=_render(values))  # type: ignore[arg-type]
        self._bar.advance(self._task_id, amount)  # type: ignore[arg-type]


class Silent:
    """A reporter that shows nothing."""

    def advance(self, amount: int = 1, **values: float | str) -> None:
        """Take no notice."""


class _Lines:
    def __init__(self, name: str, total: int, unit: str, done: int) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._first, self._done = done, done
        self._start = self._last = time.monotonic()

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self._done += amount
        now = time.monotonic()
        if self._done < self._total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        text = f"{self._name}: {self._done}/{self._total} {self._unit}, {rate:.1f} {self._unit}/s, {left:.0f} s left"
        tell(f"{text}  {_render(values)}".rstrip())


def _render(values: dict[str, float | str]) -> str:
    shown = (value if isinstance(value, str) else f"{value:.4g}" for value in values.values())
    return "  ".join(f"{name} {value}" for name, value in zip(values, shown, strict=True))


@contextmanager
def progress(name: str, total: int, unit: str, done: int = 0, shown: bool = True) -> Iterator[Reporter]:
    """A reporter for a loop of `total` units of which `done` are already there. Written to stderr if `shown`."""
    if not shown:
        yield Silent()
        return
    if not sys.stderr.isatty():
        yield _Lines(name, total, unit, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TextColumn("{task.fields[values]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(name, total=total, completed=done, values=""))

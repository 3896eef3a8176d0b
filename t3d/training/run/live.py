"""What a run shows while it trains: a live panel on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from t3d.errors import tell
from t3d.progress import Reporter, Silent, progress
from t3d.training.run.watching import Best

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
SPEEDS = ("tokens_per_second", "examples_per_second", "mfu", "memory_gib")
"""Metrics of the right column; those of the objective and the optimizer are in the left one."""
HIDDEN = ("loss", "seconds")


class View(Protocol):
    """What a run tells of itself, on the main process."""

    def step(self, values: Mapping[str, float] | None = None) -> None:
        """One more optimizer step is done; `values` are its metrics, where they are logged."""

    def evaluating(self, step: int, num_answers: int) -> Reporter:
        """An evaluation of so many answers begins; the reporter hears of each."""

    def evaluated(self, step: int, metrics: Mapping[str, float], best: Best | None) -> None:
        """It is over."""


@contextmanager
def view_of_run(title: str, total: int, done: int = 0, shown: bool = True) -> Iterator[View]:
    """The view of a run of `total` steps of which `done` are already there, written to stderr if `shown`.

    Args:
        title: names the run.
        total, done: optimizer steps.
        shown: whether this process speaks for the run.
    """
    if shown and sys.stderr.isatty():
        panel = RunPanel(title, total, done)
        with Live(get_renderable=panel.render, console=Console(stderr=True), refresh_per_second=2):
            yield panel
        return
    with progress("train", total, "steps", done, shown=shown) as lines:
        yield _Lines(lines, shown)


class _Lines:
    def __init__(self, lines: Reporter, shown: bool) -> None:
        self._lines, self._shown = lines, shown

    def step(self, values: Mapping[str, float] | None = None) -> None:
        values = values or {}
        self._lines.advance(1, **{name: values[name] for name in ("loss", "agreement") if name in values})

    def evaluating(self, step: int, num_answers: int) -> Reporter:
        return Silent()  # one line at its end says it all

    def evaluated(self, step: int, metrics: Mapping[str, float], best: Best | None) -> None:
        if not self._shown:
            return
        found = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("accuracy"))
        which = f"  best: step {best.step}" if best is not None else ""
        tell(f"evaluation after step {step}:  {found}{which}")


class RunPanel:
    """The live panel. Values come in at logged steps; in between only clock and bar move.

    Args:
        title: names the run.
        total, done: optimizer steps.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._begin = time.monotonic()
        self._values: dict[str, float] = {}
        self._losses: deque[float] = deque(maxlen=10_000)
        self._evaluations: dict[int, dict[str, float]] = {}
        self._best: Best | None = None
        self._busy: _Answers | None = None

    def step(self, values: Mapping[str, float] | None = None) -> None:
        """As `View`."""
        self._done += 1
        if values is not None:
            self._values = dict(values)
            self._losses.append(values["loss"])

    def evaluating(self, step: int, num_answers: int) -> Reporter:
        """As `View`."""
        self._busy = _Answers(step, num_answers)
        return self._busy

    def evaluated(self, step: int, metrics: Mapping[str, float], best: Best | None) -> None:
        """As `View`."""
        self._busy = None
        self._evaluations[step] = dict(metrics)
        self._best = best

    def render(self) -> RenderableType:
        """The panel as it is now."""
        parts: list[RenderableType] = [self._progress()]
        if self._values:
            parts += [Text(), self._metrics()]
        if self._evaluations or self._best is not None:
            parts += [Text(), self._accuracies()]
        if self._busy is not None:
            parts += [Text(), Text(str(self._busy), style="yellow")]
        return Panel(Group(*parts), title=Text(self._title, style="bold"), title_align="left", padding=(0, 1))

    def _progress(self) -> Table:
        gone = time.monotonic() - self._begin
        new = self._done - self._first
        left = f"{duration(gone / new * (self._total - self._done))} left" if new else ""
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(ratio=1)
        row.add_row(
            ProgressBar(self._total, self._done),
            Text(f"step {self._done:,} of {self._total:,}"),
            Text(f"{duration(gone)} gone", style="dim"),
            Text(left, style="dim"),
        )
        return row

    def _metrics(self) -> Table:
        """The loss with its course, then what else there is in two columns of names and numbers."""
        left = Text.assemble(_number("loss", self._values["loss"]), "  ", (sparkline(self._losses), "cyan"))
        values = [(name, value) for name, value in self._values.items() if name not in (*HIDDEN, *SPEEDS)]
        rows: list[tuple[str, str | Text]] = [
            ("loss", left),
            *((_label(name), _number(name, value)) for name, value in values),
        ]
        beside = [(_label(name), _number(name, self._values.get(name))) for name in SPEEDS]
        grid = Table.grid(padding=(0, 2))
        for one, other in zip_longest(rows, beside, fillvalue=("", "")):
            grid.add_row(*(cell for name, value in (one, other) for cell in (Text(name, style="dim"), value)))
        return grid

    def _accuracies(self) -> Table:
        """Before, last and best; a column a setting."""
        shown: dict[str, Mapping[str, float]] = {}
        if 0 in self._evaluations:
            shown["before training"] = self._evaluations[0]
        if self._evaluations and (last := max(self._evaluations)) > 0:
            shown[f"after step {last:,}"] = self._evaluations[last]
        if self._best is not None:
            shown[f"best: step {self._best.step:,}"] = self._best.metrics
        names = [name for name in next(iter(shown.values())) if name.startswith("accuracy@")]
        grid = Table.grid(padding=(0, 3))
        grid.add_column()
        for _ in names:
            grid.add_column(justify="right")
        titles = (f"{name.removeprefix('accuracy@')}" for name in names)
        grid.add_row(*(Text(cell, style="dim") for cell in ("accuracy at tokens per step", *titles)))
        for label, metrics in shown.items():
            style = "green" if label.startswith("best") else ""
            grid.add_row(*(Text(cell, style=style) for cell in (label, *(f"{metrics[name]:.1%}" for name in names))))
        return grid


class _Answers:
    """Counts the answers of a running evaluation."""

    def __init__(self, step: int, total: int) -> None:
        self._step, self._total, self._done = step, total, 0

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self._done += amount

    def __str__(self) -> str:
        when = f"after step {self._step:,}" if self._step else "before training"
        return f"evaluating {when}: {self._done:,} of {self._total:,} answers"


def sparkline(values: deque[float], width: int = SPARKLINE_WIDTH) -> str:
    """The course of a series in one line of at most `width` characters, each the mean of a stretch."""
    if len(values) < 2:
        return ""
    series, columns = list(values), min(width, len(values))
    bounds = [len(series) * place // columns for place in range(columns + 1)]
    means = [sum(series[low:high]) / (high - low) for low, high in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """As 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _label(name: str) -> str:
    known = {"tokens_per_second": "tokens/s", "examples_per_second": "examples/s", "mfu": "MFU", "memory_gib": "memory"}
    return known.get(name, name.replace("_", " "))


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    if name in ("mfu", "agreement"):
        return f"{value:.1%}"
    if name == "memory_gib":
        return f"{value:.1f} GiB"
    if name == "tokens_per_second":
        return f"{value:,.0f}"
    return f"{value:.4g}"

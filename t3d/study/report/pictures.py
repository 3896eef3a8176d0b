"""Pictures: accuracy against tokens per forward, and against training."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from t3d.evaluation.report.plot import COLOURS, DOTS_AN_INCH, MARKERS
from t3d.study.report.entries import Entry, dynamic_labels, static_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, PANEL_INCHES = 8.0, 4.2
LABEL_HEIGHT = 0.042
"""Of a line's name, as a share of the panel's height."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel: points, and as far as they are known their intervals.

    Attributes:
        name: of the method.
        points: (x, y), in the order in which they are joined.
        intervals: low and high of each y; () if they are not known.
    """

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines that are drawn into one pair of axes."""

    title: str
    x_label: str
    lines: Sequence[Line]


def pictures(entries: Sequence[Entry]) -> dict[str, bytes]:
    """File name -> content: accuracy.png, and training.png if students were evaluated on the way."""
    shown = [each for each in entries if each.kind in ("teacher", "method")]
    panels = [panel for panel in (_static(shown), _dynamic(shown)) if panel.lines]
    drawn = {"accuracy.png": panels, "training.png": list(_curves(shown))}
    return {name: _png(draw(own, [each.name for each in shown])) for name, own in drawn.items() if own}


def draw(panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    """Panels one below the other; a name has the same colour and mark in all, and stands at the end of its line."""
    from matplotlib.figure import Figure  # slow to import, and only a picture needs it

    figure = Figure((WIDTH_INCHES, PANEL_INCHES * len(panels)), layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        for line in panel.lines:
            _draw_line(axes, line, names.index(line.name))
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel("accuracy in percent")
        axes.grid(alpha=0.3)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))
        _name_lines(axes, panel.lines, names)
    return figure


def spread(places: Sequence[float], height: float) -> list[float]:
    """Places moved so far apart that each has `height` for itself; their order stays.

    Args:
        places: in rising order, 0 .. 1.
        height: of each.
    """
    moved: list[float] = []
    for place in places:
        moved.append(place if not moved else max(place, moved[-1] + height))
    for index in range(len(moved) - 1, -1, -1):  # those that were pushed out of the panel come back
        ceiling = 1.0 if index == len(moved) - 1 else moved[index + 1] - height
        moved[index] = min(moved[index], ceiling)
    return moved


def _static(entries: Sequence[Entry]) -> Panel:
    labels = list(static_labels(entries).values())
    title = "given tokens per step (static rule), 95% intervals"
    return Panel(title, "tokens per forward, all forwards counted", _lines(entries, labels))


def _dynamic(entries: Sequence[Entry]) -> Panel:
    labels = list(dynamic_labels(entries).values())
    title = "thresholds of the dynamic rule, 95% intervals"
    return Panel(title, "tokens per forward, all forwards counted", _lines(entries, labels))


def _lines(entries: Sequence[Entry], labels: Sequence[str]) -> list[Line]:
    lines = []
    for each in entries:
        own = sorted((label for label in labels if label in each.accuracy), key=each.tokens_per_forward)
        points = [(each.tokens_per_forward(label), each.accuracy[label].value) for label in own]
        lines.append(Line(each.name, points, [(each.accuracy[label].low, each.accuracy[label].high) for label in own]))
    return [line for line in lines if line.points]


def _curves(entries: Sequence[Entry]) -> Iterator[Panel]:
    """A panel for each number of tokens per step that students were evaluated at, by seconds of rollouts and steps."""
    numbers = {number for each in entries for row in each.trainings for point in row.curve for number in point.accuracy}
    for number in sorted(numbers):
        lines = [line for each in entries if (line := _curve(each, number)).points]
        title = f"{number} token{'s' if number > 1 else ''} per step, validation problems, mean over seeds"
        yield Panel(title, "seconds of rollouts and optimizer steps", lines)


def _curve(entry: Entry, number: int) -> Line:
    """Means over seeds at the steps that all of them were evaluated at."""
    by_step = [{point.step: point for point in each.curve if number in point.accuracy} for each in entry.trainings]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    points = [
        (
            fmean(each[step].seconds for each in by_step),
            100 * fmean(each[step].accuracy[number] for each in by_step),
        )
        for step in steps
    ]
    return Line(entry.name, points)


def _draw_line(axes: Axes, line: Line, place: int) -> None:
    xs, ys = zip(*line.points, strict=True)
    errors = None
    if line.intervals:
        pairs = list(zip(ys, line.intervals, strict=True))
        errors = [[max(0.0, y - low) for y, (low, _) in pairs], [max(0.0, high - y) for y, (_, high) in pairs]]
    axes.errorbar(
        xs, ys, yerr=errors, color=_colour(place), marker=MARKERS[place % len(MARKERS)], markersize=4, elinewidth=1
    )


def _name_lines(axes: Axes, lines: Sequence[Line], names: Sequence[str]) -> None:
    """Names to the right of the panel, as high as their lines end, with a thin line to where that is."""
    to_share: Callable[[Line], tuple[float, float]] = lambda line: _share_of_panel(axes, line.points[-1])  # noqa: E731
    ends = sorted(((to_share(line), line.name) for line in lines), key=lambda end: end[0][1])
    heights = spread([y for (_, y), _ in ends], LABEL_HEIGHT)
    for ((x, y), name), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=_colour(names.index(name)),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": _colour(names.index(name)), "linewidth": 0.4, "alpha": 0.6},
        )


def _share_of_panel(axes: Axes, point: tuple[float, float]) -> tuple[float, float]:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return (point[0] - left) / (right - left), (point[1] - low) / (high - low)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_AN_INCH)
    return content.getvalue()

"""The picture: accuracy against parallelism, a panel a benchmark, a line a method."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t3d.errors import WorkError
from t3d.evaluation.report.measurements import Measurement, grouped, measurements_of
from t3d.evaluation.results import EvalResult
from t3d.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by colour-blind readers (Okabe and Ito 2008), without their yellow, which paper swallows."""
MARKERS = "os^DvPX*"
"""For prints without colour; their number and that of the colours share no factor, so that pairs repeat late."""
PANEL_INCHES = (4.6, 3.4)
LEAST_WIDTH_INCHES = 6.4
LEGEND_LINE_INCHES = 0.22
LETTERS_AN_INCH = 11
"""Of the legend."""
LEGEND_MARK_LETTERS = 8
"""What an entry's mark and the space around it take."""
DOTS_AN_INCH = 150


@dataclass(frozen=True, slots=True)
class Style:
    """How a series is drawn in all panels."""

    colour: str
    marker: str


def plot_accuracy(results: Sequence[EvalResult], file: Path) -> None:
    """Draw `accuracy_figure` into a file, PNG or SVG by its name, which appears whole or not at all.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        write_whole(file, picture(measurements_of(results), file.suffix[1:]))
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error


def picture(measurements: Sequence[Measurement], form: str) -> bytes:
    """The content of a "png" or "svg" file with `accuracy_figure`."""
    content = io.BytesIO()
    accuracy_figure(measurements).savefig(content, format=form, dpi=DOTS_AN_INCH)
    return content.getvalue()


def accuracy_figure(measurements: Sequence[Measurement]) -> Figure:
    """Accuracy with its 95% interval against tokens per forward.

    A panel a benchmark; a colour and a mark a series; full marks are settings with given tokens per step, hollow ones,
    on a broken line, those of a dynamic rule.
    """
    from matplotlib.figure import Figure  # slow to import, and only a picture needs it

    panels = grouped(measurements, lambda each: each.benchmark)
    styles = _styles(measurements)
    num_columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    num_rows = -(-len(panels) // num_columns)
    width = max(LEAST_WIDTH_INCHES, PANEL_INCHES[0] * num_columns)
    legend = _legend_handles(styles, any(each.is_dynamic for each in measurements), round(width * LETTERS_AN_INCH))
    longest = max(len(line) for handle in legend for line in str(handle.get_label()).splitlines())
    legend_columns = max(1, round(width * LETTERS_AN_INCH) // (longest + LEGEND_MARK_LETTERS))
    num_lines = sum(1 + str(handle.get_label()).count("\n") for handle in legend[::legend_columns])
    figure = Figure((width, PANEL_INCHES[1] * num_rows + LEGEND_LINE_INCHES * num_lines), layout="constrained")
    for index, (benchmark, own) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        _draw_panel(axes, benchmark, own, styles)
        if index + num_columns >= len(panels):  # no panel below
            axes.set_xlabel("tokens per forward, all forwards counted")
        if index % num_columns == 0:
            axes.set_ylabel("accuracy in percent, 95% interval")
    figure.legend(handles=legend, loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def _styles(measurements: Sequence[Measurement]) -> dict[str, Style]:
    """Series -> its style, in order of appearance."""
    series = dict.fromkeys(each.series for each in measurements)
    return {name: Style(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, name in enumerate(series)}


def _draw_panel(axes: Axes, benchmark: str, measurements: Sequence[Measurement], styles: Mapping[str, Style]) -> None:
    for (series, is_dynamic), own in grouped(measurements, lambda each: (each.series, each.is_dynamic)).items():
        _draw_line(axes, series, own, styles[series], is_dynamic)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.grid(alpha=0.3)
    axes.set_title(benchmark)


def _draw_line(axes: Axes, series: str, measurements: Sequence[Measurement], style: Style, is_dynamic: bool) -> None:
    points = sorted(measurements, key=lambda each: each.setting.tokens_per_forward)
    below = [each.percent - 100 * each.setting.interval[0] for each in points]
    above = [100 * each.setting.interval[1] - each.percent for each in points]
    axes.errorbar(
        [each.setting.tokens_per_forward for each in points],
        [each.percent for each in points],
        yerr=[[max(0.0, length) for length in lengths] for lengths in (below, above)],  # -1e-15 is refused
        label=series,
        color=style.colour,
        marker=style.marker,
        markerfacecolor="white" if is_dynamic else style.colour,
        linestyle="--" if is_dynamic else "-",
        elinewidth=1,
        capsize=2,
    )


def _legend_handles(styles: Mapping[str, Style], has_dynamic: bool, letters: int) -> list[Line2D]:
    """An entry a series, names folded at so many letters, and one that explains hollow marks."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=style.colour, marker=style.marker, label=textwrap.fill(name, letters - LEGEND_MARK_LETTERS)
        )
        for name, style in styles.items()
    ]
    hollow = Line2D([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="--", label="dynamic rule")
    return [*handles, hollow] if has_dynamic else handles

"""How figures are written into tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from t3d.evaluation.report.layout import Cell, Column
from t3d.evaluation.report.measurements import Measurement

MISSING = Cell("–")
"""What was not measured."""
METHOD = Column("method", is_text=True)


@dataclass(frozen=True, slots=True)
class MeasurementColumn:
    """A column of a table whose rows are measurements.

    Attributes:
        heading: its name and alignment.
        cell: what stands there of a measurement.
    """

    heading: Column
    cell: Callable[[Measurement], Cell]


def accuracy_cell(measurement: Measurement | None) -> Cell:
    """Accuracy in percent with its 95% interval, "93.1 (91.6–94.3)", that competes with the others of its column."""
    if measurement is None:
        return MISSING
    return share_cell(measurement.setting.accuracy, measurement.setting.interval)


def share_cell(share: float | None, interval: tuple[float, float] | None) -> Cell:
    """A share in percent with its interval, in the same way."""
    if share is None or interval is None:
        return MISSING
    low, high = interval
    return Cell(f"{100 * share:.1f} ({100 * low:.1f}–{100 * high:.1f})", score=round(100 * share, 1))


def signed(points: float) -> str:
    """A difference with one decimal and its sign: "+0.4"."""
    return f"{round(points, 1) + 0.0:+.1f}"  # no minus before a zero


def figure_cell(value: float | None) -> Cell:
    """A figure with one decimal that competes with the others of its column."""
    return MISSING if value is None else Cell(f"{value:.1f}", score=round(value, 1))


def with_change(cell: Cell, points: float | None) -> Cell:
    """A cell that also says by how many points it differs from another, where that is known: "93.1, +0.4"."""
    if points is None:
        return cell
    return replace(cell, text=f"{cell.text}, {signed(points)}")


ACCURACY = MeasurementColumn(Column("acc. % (95% interval)"), accuracy_cell)
COST = (
    MeasurementColumn(Column("tokens/s"), lambda each: Cell(f"{each.setting.tokens_per_second:,.0f}")),
    MeasurementColumn(
        Column("latency s (p95)"),
        lambda each: Cell(f"{each.setting.latency_median:.2f} ({each.setting.latency_p95:.2f})"),
    ),
    MeasurementColumn(Column("steps"), lambda each: Cell(f"{each.setting.mean_steps:.1f}")),
    MeasurementColumn(Column("TPF"), lambda each: Cell(f"{each.setting.tokens_per_forward:.2f}")),
    MeasurementColumn(Column("length"), lambda each: Cell(f"{each.setting.mean_length:.1f}")),
)
"""What decoding cost and how long its responses are."""
SERIES = MeasurementColumn(METHOD, lambda each: Cell(each.series))
DECODING = MeasurementColumn(Column("decoding", is_text=True), lambda each: Cell(each.setting.label))


def benchmark_columns(benchmarks: Sequence[str]) -> list[Column]:
    """A column a benchmark, and one for their average where there are several."""
    return [*map(Column, benchmarks), *([Column("average")] if len(benchmarks) > 1 else [])]


def with_average(figures: Sequence[float | None]) -> list[float | None]:
    """Figures for `benchmark_columns`. Where one is missing the average is None: that of the others would mislead."""
    if len(figures) < 2:
        return list(figures)
    known = [figure for figure in figures if figure is not None]
    return [*figures, fmean(known) if len(known) == len(figures) else None]

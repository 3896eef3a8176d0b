"""The paper's tables: few-step, full-step recovery, dynamic decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from t3d.evaluation.report import notes
from t3d.evaluation.report.cells import (
    ACCURACY,
    COST,
    DECODING,
    METHOD,
    SERIES,
    MeasurementColumn,
    accuracy_cell,
    benchmark_columns,
    figure_cell,
    with_average,
    with_change,
)
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best
from t3d.evaluation.report.measurements import Measurement, benchmarks_of, grouped
from t3d.evaluation.results import SettingResult

Row = Mapping[str, Measurement]
"""Benchmark -> the measurement of one series there."""


def few_step_table(measurements: Sequence[Measurement]) -> ResultTable:
    """The paper's Table 1: methods by benchmarks, a group for each number of tokens per step above one."""
    chosen = [each for each in measurements if _tokens_per_step(each) > 1]
    benchmarks = benchmarks_of(chosen)
    groups = sorted(grouped(chosen, _tokens_per_step).items())
    return ResultTable(
        name="few-step",
        title="Few-step decoding: accuracy in percent (95% interval)",
        columns=[Column("TokPS"), METHOD, *benchmark_columns(benchmarks)],
        groups=[
            mark_best(
                [[Cell(f"{number:g}"), Cell(series), *_cells(row, benchmarks)] for series, row in _rows(own).items()]
            )
            for number, own in groups
        ],
        notes=[
            notes.amounts(chosen),
            *notes.undecided(chosen, lambda each: f"{each.benchmark} at TokPS {_tokens_per_step(each):g}"),
        ],
        records=[each.record() for each in chosen],
    )


def full_step_table(measurements: Sequence[Measurement]) -> ResultTable:
    """The paper's Table 2: methods by benchmarks at one token per step, and the change against the first of them."""
    chosen = [each for each in measurements if _tokens_per_step(each) == 1]
    benchmarks, rows = benchmarks_of(chosen), _rows(chosen)
    first, baseline = next(iter(rows.items()), ("", {}))
    lines = [[Cell(series), *_cells_with_change(row, baseline, benchmarks)] for series, row in rows.items()]
    return ResultTable(
        name="full-step",
        title=f"Full-step decoding: accuracy in percent (95% interval), change against {first} in points",
        columns=[METHOD, *benchmark_columns(benchmarks)],
        groups=[mark_best(lines)] if lines else [],
        notes=[notes.amounts(chosen), *notes.undecided(chosen, lambda each: each.benchmark)],
        records=[
            {
                **each.record(),
                "baseline": first,
                "change": _difference(each.percent, _percent(baseline.get(each.benchmark))),
            }
            for each in chosen
        ],
    )


def dynamic_table(measurements: Sequence[Measurement]) -> ResultTable:
    """The paper's Table 3: what the dynamic rules cost and give, a group for each benchmark and threshold."""
    dynamic = [each for each in measurements if each.is_dynamic]
    order = benchmarks_of(dynamic)
    is_one = len(order) == 1
    chosen = sorted(dynamic, key=lambda each: (order.index(each.benchmark), *_eagerness(each.setting)))
    shown = [DECODING, SERIES, *COST, ACCURACY]
    if not is_one:
        shown.insert(0, MeasurementColumn(Column("benchmark", is_text=True), lambda each: Cell(each.benchmark)))
    groups = grouped(chosen, lambda each: (each.benchmark, each.setting.label)).values()
    return ResultTable(
        name="dynamic",
        title=f"Dynamic decoding on {order[0]}" if is_one else "Dynamic decoding",
        columns=[each.heading for each in shown],
        groups=[mark_best([[column.cell(each) for column in shown] for each in own]) for own in groups],
        notes=[
            notes.amounts(chosen),
            notes.COST,
            *notes.unequal_conditions(chosen),
            *notes.undecided(chosen, lambda each: f"{each.benchmark} at {each.setting.label}"),
        ],
        records=[each.record() for each in chosen],
    )


def _eagerness(setting: SettingResult) -> tuple[float, float]:
    """What a dynamic rule goes by: its threshold, its entropy bound."""
    return setting.threshold or 0.0, setting.entropy_bound or 0.0


def _tokens_per_step(measurement: Measurement) -> float:
    """0 for a dynamic rule."""
    return measurement.setting.tokens_per_step or 0.0


def _rows(measurements: Iterable[Measurement]) -> dict[str, Row]:
    """Series -> its row; no two measurements are of the same series on the same benchmark."""
    series = grouped(measurements, lambda each: each.series)
    return {name: {each.benchmark: each for each in own} for name, own in series.items()}


def _percent(measurement: Measurement | None) -> float | None:
    return None if measurement is None else measurement.percent


def _figures(row: Row, benchmarks: Sequence[str]) -> list[float | None]:
    """Accuracy in percent under each of `benchmark_columns`."""
    return with_average([_percent(row.get(benchmark)) for benchmark in benchmarks])


def _cells(row: Row, benchmarks: Sequence[str]) -> list[Cell]:
    """An entry under each of `benchmark_columns`."""
    average = _figures(row, benchmarks)[len(benchmarks) :]
    return [*(accuracy_cell(row.get(benchmark)) for benchmark in benchmarks), *map(figure_cell, average)]


def _cells_with_change(row: Row, baseline: Row, benchmarks: Sequence[str]) -> list[Cell]:
    """The same, with the differences from the baseline's figures."""
    cells = _cells(row, benchmarks)
    if row is baseline:
        return cells
    changes = map(_difference, _figures(row, benchmarks), _figures(baseline, benchmarks))
    return [with_change(cell, points) for cell, points in zip(cells, changes, strict=True)]


def _difference(figure: float | None, reference: float | None) -> float | None:
    return None if figure is None or reference is None else figure - reference

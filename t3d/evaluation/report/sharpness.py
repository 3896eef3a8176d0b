"""What sampling finds: how many ways a model has, and what the majority of its answers is worth."""

from __future__ import annotations

from collections.abc import Sequence

from t3d.evaluation.report import notes
from t3d.evaluation.report.cells import DECODING, MISSING, SERIES, MeasurementColumn, figure_cell, share_cell
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best
from t3d.evaluation.report.measurements import Measurement, benchmarks_of, grouped


def sharpness_table(measurements: Sequence[Measurement]) -> ResultTable:
    """A row a measurement with several samples a problem, a group for each benchmark and setting.

    Accuracies compete within a group. What tells how many ways a model has does not: neither more nor fewer is better
    in itself.
    """
    chosen = [each for each in measurements if each.setting.num_samples > 1]
    groups = grouped(chosen, lambda each: (each.benchmark, each.setting.label)).values()
    benchmarks, methods = benchmarks_of(chosen), {each.result.name for each in chosen}
    shown = [DECODING, *_columns(sorted({each.setting.num_samples for each in chosen}))]
    if len(methods) > 1 or any(len(own) > 1 for own in groups):
        shown.insert(1, SERIES)
    if len(benchmarks) > 1:
        shown.insert(0, MeasurementColumn(Column("benchmark", is_text=True), lambda each: Cell(each.benchmark)))
    return ResultTable(
        name="sharpness",
        title=f"Sharpness on {benchmarks[0]}" if len(benchmarks) == 1 else "Sharpness",
        columns=[each.heading for each in shown],
        groups=[mark_best([[column.cell(each) for column in shown] for each in own]) for own in groups],
        notes=[notes.amounts(chosen), notes.SHARPNESS, *notes.confident_rules(chosen)],
        records=[each.record() for each in chosen],
    )


def _columns(numbers_of_samples: Sequence[int]) -> list[MeasurementColumn]:
    """What several samples tell, of measurements with so many a problem, ascending: benchmarks may differ in that."""
    most = 2 ** (max(numbers_of_samples, default=1).bit_length() - 1)  # pass@k is known for powers of two
    voters = f"{numbers_of_samples[0]}" if len(numbers_of_samples) == 1 else "n"
    return [
        MeasurementColumn(Column("pass@1"), lambda each: figure_cell(each.percent)),
        MeasurementColumn(Column(f"pass@{most}"), lambda each: _percent(each.setting.pass_at_k.get(most))),
        MeasurementColumn(
            Column(f"maj@{voters}"),
            lambda each: share_cell(each.setting.majority_accuracy, each.setting.majority_interval),
        ),
        MeasurementColumn(Column("answers"), lambda each: _figure(each.setting.distinct_answers)),
        MeasurementColumn(Column("texts %"), lambda each: _percent(each.setting.distinct_responses)),
        MeasurementColumn(Column("nats"), lambda each: _figure(each.setting.nats_per_token, decimals=3)),
    ]


def _percent(share: float | None) -> Cell:
    return MISSING if share is None else Cell(f"{100 * share:.1f}")


def _figure(value: float | None, decimals: int = 2) -> Cell:
    return MISSING if value is None else Cell(f"{value:.{decimals}f}")

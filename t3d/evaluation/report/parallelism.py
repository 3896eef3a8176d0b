"""AUP: one figure for a whole curve of accuracy against parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from t3d.evaluation.metrics import accuracy_under_parallelism
from t3d.evaluation.report import notes
from t3d.evaluation.report.cells import METHOD, benchmark_columns, figure_cell, with_average
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best
from t3d.evaluation.report.measurements import Measurement, benchmarks_of, grouped


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's settings of one kind on one benchmark.

    Attributes:
        series, benchmark: whose, where.
        kind: "static" (the settings with given tokens per step) or "dynamic".
        settings: their labels, in the order of the alphabet.
        best_accuracy: percent, the highest on the benchmark among all that is compared.
        aup: area under the curve, in percent times tokens per forward.
    """

    series: str
    benchmark: str
    kind: str
    settings: tuple[str, ...]
    best_accuracy: float
    aup: float


def curves_of(measurements: Sequence[Measurement]) -> list[Curve]:
    """Every curve's AUP, static ones first."""
    best = {
        benchmark: max(each.percent for each in own)
        for benchmark, own in grouped(measurements, lambda each: each.benchmark).items()
    }
    ordered = sorted(measurements, key=lambda each: each.is_dynamic)
    groups = grouped(ordered, lambda each: (each.is_dynamic, each.series, each.benchmark))
    return [
        Curve(
            series=series,
            benchmark=benchmark,
            kind="dynamic" if is_dynamic else "static",
            settings=tuple(sorted(each.setting.label for each in own)),
            best_accuracy=best[benchmark],
            aup=accuracy_under_parallelism(
                [(each.setting.tokens_per_forward, each.percent) for each in own], best[benchmark]
            ),
        )
        for (is_dynamic, series, benchmark), own in groups.items()
    ]


def aup_table(measurements: Sequence[Measurement]) -> ResultTable:
    """Methods by benchmarks, a group for static settings and one for dynamic ones."""
    curves, benchmarks = curves_of(measurements), benchmarks_of(measurements)
    return ResultTable(
        name="aup",
        title="AUP: area under the accuracy-parallelism curve",
        columns=[Column("settings", is_text=True), METHOD, *benchmark_columns(benchmarks)],
        groups=[
            mark_best([_row(kind, series, row, benchmarks) for series, row in grouped(own, _series).items()])
            for kind, own in grouped(curves, lambda each: each.kind).items()
        ],
        notes=[notes.amounts(measurements), notes.AUP, *_unequal_settings(curves)],
        records=[{**asdict(each), "settings": "; ".join(each.settings)} for each in curves],
    )


def _series(curve: Curve) -> str:
    return curve.series


def _row(kind: str, series: str, curves: Sequence[Curve], benchmarks: Sequence[str]) -> list[Cell]:
    areas = {each.benchmark: each.aup for each in curves}
    figures = with_average([areas.get(benchmark) for benchmark in benchmarks])
    return [Cell(kind), Cell(series), *map(figure_cell, figures)]


def _unequal_settings(curves: Sequence[Curve]) -> list[str]:
    """A sentence for each place where curves were measured at different settings: one with more may reach further."""
    told = []
    for (benchmark, kind), own in grouped(curves, lambda each: (each.benchmark, each.kind)).items():
        sets = grouped(own, lambda each: each.settings)
        if len(sets) > 1:
            which = "; ".join(f"{', '.join(map(_series, group))} at {', '.join(at)}" for at, group in sets.items())
            told.append(
                f"{benchmark}, {kind} settings: areas under curves of different settings hardly compare ({which})."
            )
    return told

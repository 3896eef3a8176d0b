"""Two models on the same problems: what sets them apart, problem by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3d.errors import RequestError
from t3d.evaluation.metrics import mcnemar_p, paired_difference
from t3d.evaluation.report import notes
from t3d.evaluation.report.cells import DECODING, METHOD, MISSING, accuracy_cell, signed
from t3d.evaluation.report.layout import Cell, Column, ResultTable
from t3d.evaluation.report.measurements import Measurement, benchmarks_of, grouped
from t3d.evaluation.settings import SETTING_FIELDS

LEAST_P = 0.001
"""That is shown as a figure."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and the base model at the same setting of the same benchmark.

    Attributes:
        measurement, base: of the two.
        difference, low, high: accuracy of the model minus that of the base, in points, with its 95% interval.
        won, lost: problems that only the model, and only the base, gets right; None with several samples.
        p: of McNemar's exact test; None with several samples, of which it says nothing.
    """

    measurement: Measurement
    base: Measurement
    difference: float
    low: float
    high: float
    won: int | None = None
    lost: int | None = None
    p: float | None = None


def paired_table(measurements: Sequence[Measurement], base: str) -> ResultTable:
    """Every other model against the model of that name, at each setting that both were measured at.

    Args:
        measurements: that may stand side by side (`comparable`): over the same problems on each benchmark.
        base: how reports call the model.

    Raises:
        RequestError: no such model, none to pair it with, or results that do not tell which problems were right.
    """
    pairs = _pairs_of(measurements, base)
    benchmarks = benchmarks_of(each.measurement for each in pairs)
    columns = [DECODING.heading, METHOD, *map(Column, ("acc. % (95% interval)", "change", "won", "lost", "p"))]
    if len(benchmarks) > 1:
        columns.insert(0, Column("benchmark", is_text=True))
    groups = grouped(pairs, lambda each: (each.measurement.benchmark, each.measurement.setting.label)).values()
    return ResultTable(
        name="paired",
        title=f"Against {base} on the same problems, change in points (95% interval)",
        columns=columns,
        groups=[[_row(pair, len(benchmarks) > 1) for pair in own] for own in groups],
        notes=[notes.amounts(each.measurement for each in pairs), notes.PAIRED],
        records=[_record(each) for each in pairs],
    )


def _pairs_of(measurements: Sequence[Measurement], base: str) -> list[Pair]:
    names = list(dict.fromkeys(each.result.name for each in measurements))
    if base not in names:
        raise RequestError(f"--paired {base!r} is none of the models compared: use one of {', '.join(names)}")
    bases = {_place(each): each for each in measurements if each.result.name == base}
    others = [each for each in measurements if each.result.name != base and _place(each) in bases]
    if not others:
        raise RequestError(f"--paired {base}: no other model was measured at one of its settings; name such results")
    return [_pair(each, bases[_place(each)]) for each in others]


def _place(measurement: Measurement) -> tuple[Any, ...]:
    """What two measurements share that are of the same problems, decoded alike."""
    return (measurement.benchmark, *(getattr(measurement.setting, name) for name in SETTING_FIELDS))


def _pair(measurement: Measurement, base: Measurement) -> Pair:
    own, others = _rights(measurement), _rights(base)
    difference, low, high = paired_difference(own.mean(axis=1)[None], others.mean(axis=1)[None])
    pair = Pair(measurement, base, 100 * difference, 100 * low, 100 * high)
    if own.shape[1] > 1:
        return pair
    own, others = own[:, 0], others[:, 0]
    return replace(pair, won=int((own & ~others).sum()), lost=int((others & ~own).sum()), p=mcnemar_p(own, others))


def _rights(measurement: Measurement) -> NDArray[np.bool_]:
    rights = measurement.setting.rights()
    if rights is None:
        raise RequestError(
            f"--paired: the result of {measurement.result.name} on {measurement.benchmark}, by an earlier version of "
            "t3d, does not tell which problems were right: run t3d eval again"
        )
    return rights


def _row(pair: Pair, with_benchmark: bool) -> list[Cell]:
    own = pair.measurement
    return [
        *([Cell(own.benchmark)] if with_benchmark else []),
        Cell(own.setting.label),
        Cell(own.series),
        accuracy_cell(own),
        Cell(f"{signed(pair.difference)} ({signed(pair.low)}…{signed(pair.high)})"),
        *(MISSING if count is None else Cell(f"{count}") for count in (pair.won, pair.lost)),
        MISSING if pair.p is None else Cell(f"{pair.p:.3f}" if pair.p >= LEAST_P else f"<{LEAST_P}"),
    ]


def _record(pair: Pair) -> dict[str, Any]:
    figures = ("difference", "low", "high", "won", "lost", "p")
    own = {name: getattr(pair, name) for name in figures}
    return {**pair.measurement.record(), "base": pair.base.result.name, **own}

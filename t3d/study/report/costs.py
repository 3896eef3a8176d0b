"""The table of costs: what training took, and one figure for each curve of accuracy against parallelism."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from t3d.evaluation.metrics import accuracy_under_parallelism
from t3d.evaluation.report import notes
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best
from t3d.study.report.entries import Entry, dynamic_labels, static_labels


def cost_table(entries: Sequence[Entry]) -> ResultTable:
    """A line a method: learning rate, steps, seconds, AUP."""
    shown = [each for each in entries if each.kind in ("teacher", "method")]
    best = max((figure.value for each in shown for figure in each.accuracy.values()), default=0.0)
    records = [_record(each, best, shown) for each in shown]
    columns = ("method", "lr", "steps", "s/step", "rollouts s", "steps s", "wall s", "AUP static", "AUP dynamic")
    return ResultTable(
        name="costs",
        title="What training took, and the area under each curve",
        columns=[Column(name, is_text=name == "method") for name in columns],
        groups=[mark_best([_cells(record) for record in records])],
        notes=[
            "Means over seeds. s/step: median over a run's logged stretches, without the first, which compiles, and "
            "without evaluations; runs shared devices. Rollouts: shared ones counted in full for each method that "
            "learns from them. Wall: trainings with compilation and evaluations, without their start.",
            notes.AUP,
        ],
        records=records,
    )


def _record(entry: Entry, best: float, entries: Sequence[Entry]) -> dict[str, str | float | None]:
    trainings = entry.trainings
    took: dict[str, float | None] = dict.fromkeys(("steps", "s/step", "rollouts s", "steps s", "wall s"))
    if trainings:
        took = {
            "steps": fmean(each.steps for each in trainings),
            "s/step": fmean(each.seconds_per_step for each in trainings),
            "rollouts s": fmean(each.rollout_seconds for each in trainings),
            "steps s": fmean(each.step_seconds for each in trainings),
            "wall s": fmean(each.wall_seconds for each in trainings),
        }
    areas = {
        "AUP static": _area(entry, static_labels(entries).values(), best),
        "AUP dynamic": _area(entry, dynamic_labels(entries).values(), best),
    }
    return {"method": entry.name, "lr": entry.lr, **took, **areas}


def _area(entry: Entry, labels: Iterable[str], best: float) -> float | None:
    points = [
        (entry.tokens_per_forward(label), entry.accuracy[label].value) for label in labels if label in entry.accuracy
    ]
    return accuracy_under_parallelism(points, best) if points else None


def _cells(record: dict[str, str | float | None]) -> list[Cell]:
    forms = {"lr": "g", "steps": ",.0f", "s/step": ".3f"}
    return [
        Cell("–" if value is None else value)
        if value is None or isinstance(value, str)
        else Cell(f"{value:{forms.get(name, '.1f')}}", score=round(value, 1) if name.startswith("AUP") else None)
        for name, value in record.items()
    ]

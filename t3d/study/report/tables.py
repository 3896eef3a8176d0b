"""Tables of accuracy: static and dynamic rules, equal time, ablations, learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from t3d.config.study import EQUAL_TIME
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best
from t3d.study.report.entries import (
    Difference,
    Entry,
    Figure,
    chosen_lr,
    compare,
    dynamic_labels,
    static_labels,
)
from t3d.study.rows import StudyRows

METHOD = Column("method", is_text=True)
MISSING = Cell("–")
INTERVAL = (
    "95% intervals by resampling seeds with replacement, and problems with replacement once for all seeds (both count: "
    "other seeds, other problems). Bold: the best figure of a column."
)


def static_table(entries: Sequence[Entry]) -> ResultTable:
    """Method by tokens per step, and who is best."""
    shown = [each for each in entries if each.kind in ("teacher", "method")]
    labels = static_labels(shown)
    return ResultTable(
        name="static",
        title="Accuracy in percent at given tokens per step (static rule)",
        columns=[METHOD, *(Column(f"{number:g} TokPS") for number in labels), Column("TPF")],
        groups=_grouped(
            shown, [[Cell(each.name), *_accuracies(each, labels.values()), _paces(each, labels)] for each in shown]
        ),
        notes=[INTERVAL, "TPF: tokens per forward at each, all forwards counted.", *_winners(shown, labels)],
        records=[record for each in shown for record in _records(each)],
    )


def dynamic_table(entries: Sequence[Entry]) -> ResultTable:
    """What the dynamic rule makes of each threshold: a group each."""
    shown = [each for each in entries if each.kind in ("teacher", "method")]
    labels = dynamic_labels(shown)
    return ResultTable(
        name="dynamic",
        title="Accuracy in percent and tokens per forward under the dynamic rule",
        columns=[Column("threshold"), METHOD, Column("accuracy"), Column("TPF"), Column("length")],
        groups=[
            mark_best(
                [
                    [
                        Cell(f"{threshold:g}"),
                        Cell(each.name),
                        accuracy_cell(each.accuracy.get(label)),
                        _scored(each.tokens_per_forward(label), 2),
                        Cell(f"{each.mean_length(label):.0f}"),
                    ]
                    for each in shown
                    if label in each.accuracy
                ]
            )
            for threshold, label in labels.items()
        ],
        notes=[INTERVAL],
        records=[record for each in shown for record in _records(each)],
    )


def equal_time_table(found: StudyRows, entries: Sequence[Entry]) -> ResultTable:
    """Methods that were trained for as long as another, below it."""
    config = found.study.equal_time
    names = [] if config is None else [config.to, *map(EQUAL_TIME.format, found.study.equal_time_methods)]
    shown = [each for each in entries if each.name in names]
    labels = static_labels(shown)
    rows = [
        [Cell(each.name), Cell(f"{each.trainings[0].steps:,}"), *_accuracies(each, labels.values())] for each in shown
    ]
    return ResultTable(
        name="equal-time",
        title="Accuracy in percent at equal time",
        columns=[METHOD, Column("steps"), *(Column(f"{number:g} TokPS") for number in labels)],
        groups=[mark_best(rows)] if len(shown) > 1 else [],
        notes=[
            "Each method takes as many steps as fit into the first one's rollouts and steps, after its own rollouts, "
            "at the seconds a step that it had in the main runs (median over logged stretches, averaged over seeds, "
            "all run with the same number of jobs a device; start and compilation excepted on both sides).",
            INTERVAL,
        ],
        records=[record for each in shown for record in _records(each)],
    )


def ablation_table(found: StudyRows, entries: Sequence[Entry]) -> ResultTable:
    """What each change does to its method: a group a method, which stands first."""
    by_name = {entry.name: entry for entry in entries if entry.kind != "equal time"}
    labels = static_labels(entries)
    groups, records = [], []
    for method in found.study.methods:
        changed = [name for name, each in found.study.ablations.items() if each.of == method and name in by_name]
        base = by_name.get(method)
        if not changed or base is None:
            continue
        group = [[Cell(method), Cell(""), *_accuracies(base, labels.values(), competes=False)]]
        for name in changed:
            differences = {label: compare(by_name[name], base, label) for label in labels.values()}
            group.append([Cell(""), Cell(name), *map(difference_cell, differences.values())])
            records += [_difference_record(name, method, label, each) for label, each in differences.items()]
        groups.append(group)
    return ResultTable(
        name="ablations",
        title="Ablations: difference to the method in points (95% interval)",
        columns=[METHOD, Column("change", is_text=True), *(Column(f"{number:g} TokPS") for number in labels)],
        groups=groups,
        notes=[
            "At the learning rate chosen for the method. Paired over problems and seeds; bold where 0 lies outside."
        ],
        records=records,
    )


def rate_table(found: StudyRows) -> ResultTable:
    """What was tried with the first seed, and chosen."""
    study = found.study
    own = [row for row in found.rows if row.kind == "method" and row.seed == study.seeds[0]]
    own.sort(key=lambda row: bool(row.validation))  # a test that failed later does not hide what was tried
    tried = {(row.variant, row.lr): row for row in own}
    rows = []
    for method in study.methods:
        chosen = chosen_lr(found, method)
        cells = []
        for lr in study.learning_rates:
            row = tried.get((method, lr))
            if row is None or not row.validation:
                cells.append(Cell("failed" if row is not None and row.error else "–"))
                continue
            each = " / ".join(f"{100 * share:.1f}" for share in row.validation.values())
            cells.append(Cell(f"{100 * row.validation_mean:.1f} ({each})", is_best=lr == chosen))
        rows.append([Cell(method), *cells])
    steps = ", ".join(f"{number:g}" for number in study.tune.tokens_per_step)
    return ResultTable(
        name="learning-rates",
        title="Learning rates: what was tried and chosen",
        columns=[METHOD, *(Column(f"{lr:g}") for lr in study.learning_rates)],
        groups=[rows],
        notes=[
            f"Mean accuracy in percent on {study.tune.limit:,} problems of split {study.tune.split} with seed "
            f"{study.seeds[0]} (at {steps} tokens per step). Bold: chosen."
        ],
        records=[
            {
                "method": row.variant,
                "lr": row.lr,
                "mean": row.validation_mean,
                **{f"at {k}": v for k, v in row.validation.items()},
            }
            for row in tried.values()
            if row.validation
        ],
    )


def accuracy_cell(figure: Figure | None, competes: bool = True) -> Cell:
    """Percent with its interval: "93.1 (91.6–94.3)"."""
    if figure is None:
        return MISSING
    score = round(figure.value, 1) if competes else None
    return Cell(f"{figure.value:.1f} ({figure.low:.1f}–{figure.high:.1f})", score=score)


def difference_cell(difference: Difference | None) -> Cell:
    """Points with their interval: "+1.2 (+0.4 to +2.0)", bold where 0 lies outside."""
    if difference is None:
        return MISSING
    points = difference.points
    text = f"{points.value:+.1f} ({points.low:+.1f} to {points.high:+.1f})"
    return Cell(text, is_best=not points.low <= 0 <= points.high)


def _scored(value: float, decimals: int) -> Cell:
    return Cell(f"{value:.{decimals}f}", score=round(value, decimals))


def _accuracies(entry: Entry, labels: Iterable[str], competes: bool = True) -> list[Cell]:
    return [accuracy_cell(entry.accuracy.get(label), competes) for label in labels]


def _paces(entry: Entry, labels: dict[float, str]) -> Cell:
    return Cell(
        " / ".join(f"{entry.tokens_per_forward(label):.2f}" for label in labels.values() if label in entry.accuracy)
    )


def _grouped(entries: Sequence[Entry], rows: list[list[Cell]]) -> list[list[list[Cell]]]:
    """Rows with the best of all marked, in the groups that the study's file gives them."""
    pairs = zip(entries, mark_best(rows), strict=True)
    return [[row for _, row in own] for _, own in groupby(pairs, key=lambda pair: pair[0].group)]


def _winners(entries: Sequence[Entry], labels: dict[float, str]) -> list[str]:
    """A sentence a setting: the best, the next, and whether they differ."""
    told = []
    for number, label in labels.items():
        ranked = sorted(
            (each for each in entries if label in each.accuracy), key=lambda each: -each.accuracy[label].value
        )
        if len(ranked) < 2:
            continue
        best, following = ranked[:2]
        difference = compare(best, following, label)
        plural = "s" if number != 1 else ""
        sentence = f"At {number:g} token{plural} per step {best.name} is best with {best.accuracy[label].value:.1f}"
        if difference is not None:
            points = difference.points
            clearly = "" if points.low > 0 else ", too close to call"
            sentence += (
                f"; {points.value:.1f} points above {following.name} "
                f"({points.low:+.1f} to {points.high:+.1f}, paired{clearly})"
            )
        told.append(sentence + ".")
    return told


def _records(entry: Entry) -> list[dict[str, Any]]:
    return [
        {
            "method": entry.name,
            "setting": each.label,
            "accuracy": entry.accuracy[each.label].value,
            "low": entry.accuracy[each.label].low,
            "high": entry.accuracy[each.label].high,
            "tokens_per_forward": entry.tokens_per_forward(each.label),
            "seeds": len(entry.rows),
            "problems": each.num_problems,
        }
        for each in entry.settings
    ]


def _difference_record(name: str, of: str, label: str, difference: Difference | None) -> dict[str, Any]:
    record: dict[str, Any] = {"ablation": name, "of": of, "setting": label}
    if difference is None:
        return record
    points = difference.points
    return record | {"points": points.value, "low": points.low, "high": points.high, "seeds": difference.num_seeds}

"""Claims: what the study's file says, and whether the rows bear it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from t3d.config.study import ClaimConfig
from t3d.evaluation.report.layout import Cell, Column, ResultTable
from t3d.study.report.entries import Difference, Entry, Figure, compare, static_labels
from t3d.study.rows import StudyRows

Verdict = Literal["confirmed", "not confirmed", "the other way round", "not measured"]

NOTE = (
    "Difference: points of accuracy, paired: both answer the same problems, and seed i of the one shares rollouts with "
    "seed i of the other; 95% interval by resampling seeds and problems. Confirmed: the whole interval lies above what "
    "the claim asks for (0 unless it says otherwise); the other way round: the whole of it lies below that and below "
    "0; else not confirmed, which does not mean refuted."
)


def verdict_of(points: Figure, by: float) -> Verdict:
    """Whether a difference exceeds `by` points, by its 95% interval."""
    if points.low > by:
        return "confirmed"
    return "the other way round" if points.high < min(by, 0.0) else "not confirmed"


def claims_table(found: StudyRows, entries: Sequence[Entry]) -> ResultTable:
    """A line for each claim and setting."""
    by_name = {entry.name: entry for entry in entries}
    lines = [line for claim in found.study.claims for line in _lines(claim, by_name, static_labels(entries))]
    columns = (
        Column("claim", is_text=True),
        Column("better", is_text=True),
        Column("than", is_text=True),
        Column("TokPS"),
        Column("difference (95%)"),
        Column("asked"),
        Column("seeds"),
        Column("verdict", is_text=True),
    )
    return ResultTable(
        name="claims",
        title="Claims",
        columns=columns,
        groups=[[_cells(line) for line in lines]] if lines else [],
        notes=[NOTE],
        records=lines,
    )


def _lines(claim: ClaimConfig, entries: dict[str, Entry], labels: dict[float, str]) -> Iterator[dict[str, Any]]:
    one, other = entries.get(claim.better), entries.get(claim.than)
    for number in claim.at or labels:
        label = labels.get(number)
        difference = None if one is None or other is None or label is None else compare(one, other, label)
        yield _line(claim, number, difference)


def _line(claim: ClaimConfig, number: float, difference: Difference | None) -> dict[str, Any]:
    line = {"claim": claim.text, "better": claim.better, "than": claim.than, "tokens_per_step": number, "by": claim.by}
    if difference is None:
        return line | {"verdict": "not measured"}
    points = difference.points
    figures = {"points": points.value, "low": points.low, "high": points.high, "seeds": difference.num_seeds}
    return line | figures | {"verdict": verdict_of(points, claim.by)}


def _cells(line: dict[str, Any]) -> list[Cell]:
    points = f"{line['points']:+.1f} ({line['low']:+.1f} to {line['high']:+.1f})" if "points" in line else "–"
    texts = (
        line["claim"],
        line["better"],
        line["than"],
        f"{line['tokens_per_step']:g}",
        points,
        f"> {line['by']:+g}" if line["by"] else "> 0",
        str(line.get("seeds", "–")),
        line["verdict"],
    )
    return [Cell(text, is_best=index == len(texts) - 1) for index, text in enumerate(texts)]

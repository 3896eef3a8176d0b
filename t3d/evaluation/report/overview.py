"""Every setting of results on one benchmark: what `t3d eval` shows when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from t3d.evaluation.report import notes
from t3d.evaluation.report.cells import ACCURACY, COST, DECODING, METHOD, MeasurementColumn
from t3d.evaluation.report.layout import Cell, Column, ResultTable
from t3d.evaluation.report.measurements import grouped, measurements_of
from t3d.evaluation.results import EvalResult, SettingResult


def result_table(results: Sequence[EvalResult]) -> ResultTable:
    """A row a setting, of results on the same benchmark; columns that would say the same in each row are left out."""
    measurements = measurements_of(results)
    methods = grouped(measurements, lambda each: each.result.name)
    asked = f"{results[0].benchmark}, {notes.amount(measurements[0])}"
    shown = [DECODING, ACCURACY]
    if len(methods) > 1:
        shown.insert(0, MeasurementColumn(METHOD, lambda each: Cell(each.result.name)))
    shown += COST
    if any(each.setting.finish_reasons.keys() != {"stop"} for each in measurements):
        shown.append(MeasurementColumn(Column("end", is_text=True), lambda each: Cell(_ends(each.setting))))
    return ResultTable(
        name="settings",
        title=asked if len(methods) > 1 else f"{results[0].name}: {asked}",
        columns=[each.heading for each in shown],
        groups=[[[column.cell(each) for column in shown] for each in own] for own in methods.values()],
        notes=notes.unequal_conditions(measurements),
        records=[each.record() for each in measurements],
    )


def result_markdown(results: Sequence[EvalResult]) -> str:
    """The rows of `result_table` in Markdown."""
    return result_table(results).markdown()


def _ends(setting: SettingResult) -> str:
    """How responses ended, with counts where not all ended alike."""
    reasons = sorted(setting.finish_reasons.items())
    return reasons[0][0] if len(reasons) == 1 else ", ".join(f"{reason} {count}" for reason, count in reasons)

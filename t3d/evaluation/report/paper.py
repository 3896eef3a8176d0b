"""All tables of a comparison, and the folder that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from t3d.errors import RequestError, WorkError
from t3d.evaluation.report.layout import ResultTable
from t3d.evaluation.report.measurements import Measurement
from t3d.evaluation.report.parallelism import aup_table
from t3d.evaluation.report.plot import picture
from t3d.evaluation.report.sharpness import sharpness_table
from t3d.evaluation.report.tables import dynamic_table, few_step_table, full_step_table
from t3d.files import write_whole

TABLES: Mapping[str, Callable[[Sequence[Measurement]], ResultTable]] = {
    "few-step": few_step_table,
    "full-step": full_step_table,
    "dynamic": dynamic_table,
    "aup": aup_table,
    "sharpness": sharpness_table,
}
ALL = "all"
OPTIONS = {
    "few-step": "--tokens-per-step 2,4",
    "full-step": "--tokens-per-step 1",
    "dynamic": "--threshold 0.9",
    "sharpness": "--samples 16 --temperature 1",
}
"""Table -> options of `t3d eval` that measure something for it; the others are made of any settings."""


def require_table(name: str) -> None:
    """Refuse the name of no table.

    Raises:
        RequestError: it is none of `TABLES`, nor "all".
    """
    if name not in (*TABLES, ALL):
        raise RequestError(f"--table {name!r} is unknown: use one of {', '.join((*TABLES, ALL))}")


def paper_tables(measurements: Sequence[Measurement], name: str = ALL) -> list[ResultTable]:
    """The table of this name, or all for which something was measured.

    Args:
        measurements: that may stand side by side (`comparable`).
        name: one of `TABLES`, or "all".

    Raises:
        RequestError: an unknown name, or nothing was measured for the table that was asked for.
    """
    require_table(name)
    if name == ALL:
        return [table for table in (make(measurements) for make in TABLES.values()) if table.groups]
    table = TABLES[name](measurements)
    if not table.groups:
        raise RequestError(f"--table {name}: no result has such settings; evaluate with {OPTIONS[name]}")
    return [table]


def write_comparison(measurements: Sequence[Measurement], tables: Sequence[ResultTable], folder: Path) -> list[str]:
    """Write tables.md, a CSV file a table, and the picture, each whole or not at all.

    Args:
        measurements: that the picture shows.
        tables: in the order of tables.md.
        folder: that exists.

    Returns:
        the files' names.

    Raises:
        WorkError: the disk refuses.
    """
    sections = [table.section() for table in tables]
    contents: dict[str, str | bytes] = {
        "tables.md": "\n".join([*sections, "![accuracy against tokens per forward](accuracy.png)\n"]),
        **{f"{table.name}.csv": table.csv() for table in tables},
        **{f"accuracy.{form}": picture(measurements, form) for form in ("png", "svg")},
    }
    try:
        for name, content in contents.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise WorkError(f"--out {folder}: {error.strerror or error}") from error
    return list(contents)

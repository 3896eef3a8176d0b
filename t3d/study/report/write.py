"""report.md: what was studied, under which conditions, what came out, and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t3d.errors import RequestError, WorkError
from t3d.evaluation.report.layout import ResultTable
from t3d.files import write_whole
from t3d.study.cells import tasks_of
from t3d.study.graph import Task
from t3d.study.report.claims import claims_table
from t3d.study.report.costs import cost_table
from t3d.study.report.entries import Entry, chosen_lr, entries_of
from t3d.study.report.pictures import pictures
from t3d.study.report.tables import (
    ablation_table,
    dynamic_table,
    equal_time_table,
    rate_table,
    static_table,
)
from t3d.study.rows import StudyRows

REPORT_FILE = "report.md"


def write_report(found: StudyRows, folder: Path) -> tuple[list[ResultTable], list[str]]:
    """Write report.md, its pictures and a CSV file a table, each whole or not at all.

    Args:
        found: of a study, finished or not.
        folder: is made if need be.

    Returns:
        the tables, and the files' names.

    Raises:
        RequestError: nothing was tested yet.
        WorkError: the disk refuses.
    """
    entries = entries_of(found)
    if not entries:
        raise RequestError("no cell of this study was tested yet: there is nothing to report")
    tables = tables_of(found, entries)
    drawn = pictures(entries)
    contents: dict[str, str | bytes] = {
        REPORT_FILE: report_markdown(found, entries, tables, list(drawn)),
        **drawn,
        **{f"{table.name}.csv": table.csv() for table in tables},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise WorkError(f"{folder}: {error.strerror or error}") from error
    return tables, list(contents)


def tables_of(found: StudyRows, entries: list[Entry]) -> list[ResultTable]:
    """All tables for which something was measured."""
    tables = (
        static_table(entries),
        dynamic_table(entries),
        cost_table(entries),
        equal_time_table(found, entries),
        claims_table(found, entries),
        ablation_table(found, entries),
        rate_table(found),
    )
    return [table for table in tables if table.groups]


def report_markdown(found: StudyRows, entries: list[Entry], tables: list[ResultTable], drawn: list[str]) -> str:
    """The report's text."""
    sections = [
        f"# Study of {found.study.teacher}\n\n" + "\n".join(f"- {line}" for line in conditions(found, entries)) + "\n",
        *([_failures(found)] if incomplete(found) else []),
        "## Methods\n\n" + "\n".join(_about(entries)) + "\n",
        *(table.section() for table in tables),
        *(f"![{name.removesuffix('.png')}]({name})\n" for name in drawn),
    ]
    return "\n".join(sections)


def conditions(found: StudyRows, entries: list[Entry]) -> Iterator[str]:
    """Under which conditions the figures were measured, a line each."""
    study, setting = found.study, entries[0].settings[0]
    devices = sorted({training.device for entry in entries for training in entry.trainings})
    yield (
        f"teacher {study.teacher}; {study.rollout.count or 'all'} rollouts a seed, shared by all methods without "
        f"rounds of their own; seeds {', '.join(map(str, study.seeds))}"
    )
    yield f"tested on {setting.num_problems:,} problems of {study.test.benchmark}, greedy, one answer each"
    yield (
        f"each method tuned over {', '.join(f'{lr:g}' for lr in study.learning_rates)} with seed {study.seeds[0]} on "
        f"{study.tune.limit:,} problems of split {study.tune.split}"
    )
    last = found.starts[-1]
    yield (
        f"{', '.join(devices) or 'no training finished'}; {last.jobs} jobs on {last.devices or 'no'} CUDA devices; "
        + ", ".join(f"{name} {version}" for name, version in last.versions.items())
    )
    interrupted = sum(training.starts > 1 for entry in entries for training in entry.trainings)
    if interrupted:
        yield f"{interrupted} trainings were interrupted and gone on with: their wall seconds hold less well"


def incomplete(found: StudyRows) -> list[str]:
    """What the tables lack: cells that failed, with why, and those that were not done."""
    failed = [
        f"{row.name}, learning rate {'not chosen' if row.lr is None else f'{row.lr:g}'}, seed {row.seed}: {row.error}"
        for row in found.rows
        if row.error is not None
    ]
    wanted = [task for task in tasks_of(found.study) if task.kind != "rollouts"]
    missing = sum(not _is_over(task, found) for task in wanted)
    return [*failed, *([f"{missing} of {len(wanted)} cells were not done"] if missing else [])]


def _is_over(task: Task, found: StudyRows) -> bool:
    """Whether a row tells how a task ended."""
    if task.kind == "teacher":
        return any(row.kind == "teacher" for row in found.rows)
    own = [row for row in found.rows if row.variant == task.variant and row.seed == task.seed]
    if task.kind == "tune":
        return any(row.lr == task.lr and (row.validation or row.error) for row in own)
    own = [row for row in own if (row.kind == "equal time") == (task.kind == "equal time")]
    return any(row.lr in (chosen_lr(found, task.variant), None) and (row.settings or row.error) for row in own)


def _failures(found: StudyRows) -> str:
    return "## What is missing\n\n" + "\n".join(f"- {line}" for line in incomplete(found)) + "\n"


def _about(entries: list[Entry]) -> Iterator[str]:
    for entry in entries:
        if entry.kind != "equal time":
            told = ": ".join(filter(None, (entry.group, entry.about)))
            count = len(entry.rows)
            seeds = f" ({count} seed{'s' if count > 1 else ''})" if entry.kind != "teacher" else ""
            yield f"- **{entry.name}**{seeds}" + (f" – {told}" if told else "")

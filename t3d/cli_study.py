"""`t3d study` and `t3d study-report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t3d import cli_completion as completion

if TYPE_CHECKING:
    from t3d.study.rows import StudyRows


def study(
    file: Annotated[Path, typer.Argument(help="YAML file, see recipes/story/study.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, for example test.limit=200.", autocompletion=completion.study_keys),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time; default: one a GPU.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
) -> None:
    """Train and test methods side by side, and report which is better by how much."""
    from t3d.config.study import load_study

    loaded = load_study(file, overrides or ())  # before the slow imports: a typing error shows at once
    from t3d.study.run import require_all_done, run_study

    rows = run_study(loaded, jobs, resume)
    if any(row.settings for row in rows.rows):
        _report(rows, Path(loaded.out))
    require_all_done(rows)


def study_report(
    rows: Annotated[Path, typer.Argument(help="The out of a t3d study, or its rows.json.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default: where the rows are.")] = None,
    claims: Annotated[Path | None, typer.Option(help="Study file whose claims to judge, in place of its own.")] = None,
) -> None:
    """Write the report of a study from its rows: tables, claims and pictures."""
    from t3d.config.study import load_study
    from t3d.study.rows import read_rows

    found = read_rows(rows)
    if claims is not None:
        found = found.with_claims(load_study(claims).claims)
    _report(found, out or (rows if rows.is_dir() else rows.parent))


def _report(rows: StudyRows, folder: Path) -> None:
    from rich.console import Console

    from t3d.study.report import write_report

    tables, files = write_report(rows, folder)
    for table in tables:
        Console().print(table)
    print(f"{folder}: {', '.join(files)}")

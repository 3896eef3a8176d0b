"""`t3d compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t3d import cli_completion as completion
from t3d.cli_options import make_folder


def compare(
    results: Annotated[list[Path], typer.Argument(help="result.json files of t3d eval, or folders with some.")],
    out: Annotated[Path | None, typer.Option(help="Folder for tables.md, a CSV file a table, and the picture.")] = None,
    table: Annotated[
        str,
        typer.Option(
            help="few-step, full-step, dynamic, aup, sharpness or all.",
            autocompletion=completion.registered(*completion.TABLES, "all"),
        ),
    ] = "all",
    paired: Annotated[
        str | None, typer.Option(help="Name of a model: test all others against it, problem by problem.")
    ] = None,
) -> None:
    """Put results side by side: the paper's tables, and the plot of accuracy against tokens per forward."""
    from rich.console import Console

    from t3d.evaluation import report

    report.require_table(table)
    measurements = report.comparable(report.read_results(results))
    tables = report.paper_tables(measurements, table)
    if paired is not None:
        tables.append(report.paired_table(measurements, paired))
    if out is not None:
        make_folder(out)
    for each in tables:
        Console().print(each)
    if out is not None:
        print(f"{out}: {', '.join(report.write_comparison(measurements, tables, out))}")

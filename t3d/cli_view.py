"""`t3d view`."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t3d.errors import RequestError

if TYPE_CHECKING:
    from t3d.viewer import ViewSummary


def view(
    trajectories: Annotated[Path, typer.Argument(help="Folder that t3d rollout wrote, or a parquet file.")],
    against: Annotated[Path | None, typer.Option(help="Another one, on the same prompts, to compare with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write or replace; default: the trajectories' name, here.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows on the page.")] = 200,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder with the tokenizer, if the model's own is not on this machine.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write trajectories as one web page: browse, replay, see the order of reveal, compare two files."""
    file = out or Path(Path(os.path.abspath(trajectories)).name.removesuffix(".parquet") + ".html")
    if file.is_dir() or file.suffix != ".html":
        raise RequestError(f"--out {file}: name a file that ends in .html")
    from t3d.viewer import write_view

    done = write_view(trajectories, file, against=against, limit=limit, tokenizer=tokenizer)
    print(f"{file}: {_extent(done, limit, against)}, {done.num_bytes / 1e6:.1f} MB. {done.text_source}")
    if show and not webbrowser.open(file.absolute().as_uri()):
        print(f"t3d: no browser can be started here; open {file} in one", file=sys.stderr)


def _extent(done: ViewSummary, limit: int, against: Path | None) -> str:
    """How many rows are on the page, and why not all."""
    if done.num_shown == done.num_rows:
        return f"all {done.num_rows} rows"
    if against is None:
        return f"the first {done.num_shown} of {done.num_rows} rows (--limit takes more)"
    extent = f"{done.num_shown} of {done.num_rows} rows"
    if done.num_shown == limit:
        return f"{extent}, the first that {against} has too (a higher --limit may take more)"
    return f"{extent}, those that {against} has too"

"""`t3d export` and `t3d push`: a model for servers, and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t3d.cli_options import ModelOption, check_new_folder
from t3d.errors import WorkError


def export(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "bfloat16",
) -> None:
    """Write a model again in another dtype, as LMDeploy and SGLang read it (docs/servers.md)."""
    check_new_folder(out)
    from t3d.models.exporting import export_model

    count = export_model(model, out, dtype)
    print(f"{out}: {count / 1e6:.1f} M weights in {dtype}")


def push(
    model: Annotated[Path, typer.Argument(help="Model folder, such as a run's model.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it is not there.")],
    results: Annotated[
        list[Path] | None, typer.Option(help="result.json of t3d eval for the card, or folders with some.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="As the hub calls it, such as apache-2.0; default: none.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; default: main.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Model and card by t3d push",
    new_card: Annotated[
        bool, typer.Option("--new-card", help="Write README.md anew where there is one, here or there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write README.md into the folder; upload nothing.")
    ] = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a card that holds its results (docs/publishing.md)."""
    from t3d import hub
    from t3d.evaluation import report
    from t3d.files import write_whole

    hub.require_repo(repo)
    files = hub.read_model_files(model)
    given = report.read_results(results or [])
    report.comparable(given)
    subject = hub.Subject(
        repo=repo,
        config=files.config,
        origin=hub.read_origin(model),
        own=hub.own_results(given, model),
        all=list(given.values()),
        licence=licence,
    )
    file = model / hub.CARD_FILE
    keeps = file.exists() and not new_card
    card = file.read_bytes() if keeps else hub.model_card(subject).encode()
    if keeps:
        hub.require_card_of(model, card.decode(errors="replace"))
    for line in hub.describe(files, len(card), keeps):
        print(line)
    if not keeps and (dry_run or new_card):
        try:
            write_whole(file, card)
        except OSError as error:
            raise WorkError(f"cannot write {file}: {error.strerror or error}") from error
    if not dry_run:
        replaces = keeps or new_card
        print(hub.upload(files, card, repo, message, private=private, revision=revision, replaces_card=replaces))

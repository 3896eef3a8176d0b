"""`t3d convert`: models and files of others, made into ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t3d.cli_options import check_new_folder
from t3d.errors import RequestError

app = typer.Typer(help="Make models of others into block-diffusion models.")


@app.callback(invoke_without_command=True)
def convert(
    context: typer.Context,
    from_ar: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Autoregressive model (llama, qwen2, qwen3): folder, hub id or GGUF file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Model folder to write.")] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Positions decoded together.")] = 4,
    gguf_file: Annotated[str | None, typer.Option(help="Name of a GGUF file in SOURCE.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights written: float32, bfloat16 or float16.")] = "bfloat16",
    mask_token: Annotated[
        str | None, typer.Option(help="Text of the mask token; default: the tokenizer's own, else <|mask|>.")
    ] = None,
) -> None:
    """Make an autoregressive model into a block-diffusion model, to be trained next (docs/conversion.md)."""
    if context.invoked_subcommand is not None:
        return
    if from_ar is None or out is None:
        raise RequestError("say what to convert and where to: --from-ar SOURCE --out DIR")
    check_new_folder(out)
    from t3d.models.conversion import convert_from_ar

    done = convert_from_ar(from_ar, out, block_size=block_size, gguf_file=gguf_file, dtype=dtype, mask_token=mask_token)
    rows = f"{done.old_rows} rows" if done.new_rows == done.old_rows else f"{done.old_rows} -> {done.new_rows} rows"
    stops = ", ".join(map(str, done.stop_token_ids)) or "none"
    print(
        f"{out}: {done.source_type} -> {done.family}, {done.num_parameters / 1e6:.1f} M weights, "
        f"mask token {done.mask_token} = {done.mask_token_id} ({rows}), block size {block_size}, stop ids {stops}; "
        "it cannot decode blocks before it is trained: recipes/smollm2/sft-story.yaml"
    )

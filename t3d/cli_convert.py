"""`t3d convert`: models and files of others, made into ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t3d.cli_options import (
    EntropyOption,
    RuleOption,
    ThresholdOption,
    TopKOption,
    TopPOption,
    check_new_folder,
    decoding_of,
)
from t3d.errors import RequestError

app = typer.Typer(help="Make models and files of others into ours.")


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


@app.command("upstream-rollouts")
def upstream_rollouts(
    file: Annotated[Path, typer.Argument(help="JSON that the public T3D code's sdar_sample.py wrote.")],
    out: Annotated[Path, typer.Option(help="Trajectory folder to write.")],
    model: Annotated[
        str, typer.Option(metavar="SOURCE", help="Model that was rolled out, for its tokenizer: folder or hub id.")
    ] = "JetLM/SDAR-4B-Chat",
    block_size: Annotated[int, typer.Option(min=1, help="Of the rollout: rollout.block_size.")] = 4,
    steps_per_block: Annotated[
        int | None, typer.Option(min=1, help="rollout.denoising_steps_per_block; default: the block size.")
    ] = None,
    rule: RuleOption = "low_confidence_static",
    temperature: Annotated[float, typer.Option(min=0.0, help="rollout.temperature")] = 0.1,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    threshold: ThresholdOption = 0.9,
    entropy_bound: EntropyOption = 0.5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="rollout.max_token")] = 2000,
    on_damage: Annotated[
        str,
        typer.Option(help="repair what leaves no doubt and refuse the rest; refuse both; or stop at the first damage."),
    ] = "repair",
) -> None:
    """Make rollouts of the public T3D code into trajectories, and count what was damaged (docs/differences.md)."""
    from t3d.interop.upstream.tally import DAMAGE_MODES

    if on_damage not in DAMAGE_MODES:
        raise RequestError(f"--on-damage {on_damage!r}: choose one of {', '.join(DAMAGE_MODES)}")
    decoding = decoding_of(
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_new_tokens, 0
    )
    check_new_folder(out)
    from t3d.interop.upstream.rollouts import convert_rollouts, tally_file

    tally = convert_rollouts(file, out, model, decoding, on_damage)  # type: ignore[arg-type]
    for line in tally.lines():
        print(line)
    if misplaced := tally.likely_misplaced(block_size):
        print(f"warning: answers were lost, and {misplaced} or more of those kept probably stand at others' prompts")
    print(
        f"{out}: {tally.num_kept} trajectories of {tally.num_rows} rows, {tally.num_unfinished} of them without a stop "
        f"token; the counts are in {tally_file(out)}"
    )


@app.command("upstream-config")
def upstream_config(
    file: Annotated[Path, typer.Argument(help="YAML that the public T3D code trains by.")],
    out: Annotated[Path, typer.Option(help="Recipe to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As its command line takes them.")
    ] = None,
    trajectories: Annotated[str | None, typer.Option(help="Folder of `t3d convert upstream-rollouts`.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Of an epoch; default: those of --trajectories.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="That the config was meant for.")] = 8,
    improved: Annotated[bool, typer.Option("--improved", help="Our mask order; finished answers only.")] = False,
) -> None:
    """Make a training config of the public T3D code into a recipe, and list what it cannot keep."""
    from t3d.interop.upstream.recipe import convert_config

    done = convert_config(
        file, out, overrides or (), trajectories=trajectories, num_rows=rows, num_gpus=gpus, improved=improved
    )
    for remark in done.remarks:
        print(remark)
    print(f"{out}: t3d train {out}")

"""`t3d rollout`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t3d.cli_options import (
    BackendOption,
    BatchOption,
    BlockOption,
    DeviceOption,
    DtypeOption,
    EntropyOption,
    InstructionOption,
    MaxTokensOption,
    MemoryOption,
    ModelOption,
    RecipeOption,
    RuleOption,
    SeedOption,
    ShuffleOption,
    StepsOption,
    StyleOption,
    SystemOption,
    TaskOption,
    TemperatureOption,
    TensorParallelOption,
    ThresholdOption,
    TopKOption,
    TopPOption,
    decoding_of,
    engine_held_by,
    problems_of,
    prompt_form_of,
)
from t3d.errors import RequestError

if TYPE_CHECKING:
    from t3d.trajectories import Part, RolloutSummary


def rollout(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Trajectory folder to write.")],
    prompts: Annotated[Path | None, typer.Option(help="File of prompts or questions, as task jsonl reads it.")] = None,
    task: TaskOption = None,
    data: Annotated[str | None, typer.Option(help="File or hub id of the task's problems; default: its own.")] = None,
    split: Annotated[str, typer.Option(help="Of the task.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take; an endless task needs it.")] = None,
    shuffle: ShuffleOption = None,
    prompt_style: StyleOption = None,
    instruction: InstructionOption = None,
    system: SystemOption = None,
    recipe: RecipeOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    block_size: BlockOption = None,
    steps_per_block: StepsOption = None,
    rule: RuleOption = "low_confidence_static",
    temperature: TemperatureOption = 0.1,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    threshold: ThresholdOption = 0.9,
    entropy_bound: EntropyOption = 0.5,
    max_new_tokens: MaxTokensOption = 512,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    backend: BackendOption = None,
    memory_gib: MemoryOption = None,
    tensor_parallel: TensorParallelOption = 1,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows of one file.")] = 1024,
    shard: Annotated[
        str | None, typer.Option(help="Do part i of n, from 0/n on; other processes do the others, in the same folder.")
    ] = None,
    workers: Annotated[str | None, typer.Option(help="ray: spread over all GPUs of a Ray cluster.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; default: one a GPU.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, for example auto; default: RAY_ADDRESS, else this machine.")
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="CPU cores of a Ray worker where there is no GPU; default: 1.")
    ] = None,
) -> None:
    """Decode prompts and write down at which step each token was revealed."""
    part = _part_of(shard, workers, (num_workers, address, cpus_per_worker), tensor_parallel)
    decoding = decoding_of(
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_new_tokens, seed
    )
    asked = prompt_form_of(recipe, prompt_style, instruction, system)
    chosen, problems = problems_of(prompts, task, data, split, limit, shuffle, seed)
    from t3d.models import has_tokenizer, load_config, load_tokenizer
    from t3d.tasks.prompts import put_questions
    from t3d.trajectories import rollout as roll_out
    from t3d.trajectories.parts import rank_of, use_own_gpu
    from t3d.trajectories.workers import Cluster, EngineSpec, rollout_by_ray

    spec = EngineSpec(model, dtype, device, batch_size, backend, memory_gib)
    how: dict[str, Any] = {"model_name": model, "samples": samples, "resume": resume, "rows_per_shard": rows_per_shard}
    if workers is None:
        use_own_gpu(os.environ, device)
        with engine_held_by(tensor_parallel, device, spec.build) as engine:
            if engine is None:
                return
            questions = put_questions(chosen, problems, asked, engine.tokenizer)
            how |= {"form": questions.form, "part": part, "shown": rank_of(os.environ, tensor_parallel).index == 0}
            done = roll_out(engine, questions.prompts, decoding, out, **how)
    else:
        load_config(model)  # a wrong name shows before workers are started
        tokenizer = load_tokenizer(model) if has_tokenizer(model) else None
        questions = put_questions(chosen, problems, asked, tokenizer)
        how |= {"form": questions.form, "cluster": Cluster(address, num_workers, cpus_per_worker or 1)}
        done = rollout_by_ray(spec, tokenizer, questions.prompts, decoding, out, **how)
    print(_report(out, done, part))


def _part_of(shard: str | None, workers: str | None, of_a_cluster: tuple[object, ...], tensor_parallel: int) -> Part:
    """The part of the rollout that this process does, from `--shard` and the rank that torchrun gave it.

    Args:
        shard, workers: the options.
        of_a_cluster: the options that mean something with a Ray cluster only; None is not given.
        tensor_parallel: processes that do a part together.

    Raises:
        RequestError: options that contradict each other.
    """
    from t3d.trajectories.parts import WHOLE, Part, rank_of

    if workers not in (None, "ray"):
        raise RequestError(f"--workers {workers!r} is unknown: use ray, or leave it out")
    if workers is not None and tensor_parallel > 1:
        raise RequestError(
            "a Ray worker has one GPU: leave out --tensor-parallel, or leave out --workers and start it by torchrun"
        )
    part = (WHOLE if shard is None else Part.parse(shard)).split(rank_of(os.environ, tensor_parallel))
    if workers is None and any(given is not None for given in of_a_cluster):
        raise RequestError(
            "--num-workers, --address and --cpus-per-worker are of a Ray cluster: add --workers ray, or leave them out"
        )
    if workers is not None and part != WHOLE:
        raise RequestError(
            "--workers ray hands the shards out itself: leave out --shard, and start it once, not by torchrun"
        )
    return part


def _report(out: Path, done: RolloutSummary, part: Part) -> str:
    """One line: what this process did and, if it did a part, how far the whole is."""
    from t3d.trajectories import WHOLE, state_of

    ended = ", ".join(f"{reason} {count}" for reason, count in sorted(done.finish_reasons.items())) or "nothing to do"
    line = (
        f"{done.num_rows} answers, {done.num_tokens} tokens, TPF {done.tokens_per_forward:.2f}, "
        f"{done.tokens_per_second:,.0f} tokens/s, ended by: {ended}"
    )
    if part == WHOLE:
        return f"{out}: {line}"
    state = state_of(out)
    whole = f"{state.num_finished} of {state.num_shards} shards are finished"
    if state.is_complete:
        whole = f"all {state.num_shards} shards are finished, {state.num_rows} answers"
    return f"{out}, part {part}: {line}; {whole}"

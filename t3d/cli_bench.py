"""`t3d bench`: the commands that measure speed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t3d import cli_completion as completion
from t3d.cli_options import (
    BlockOption,
    DeviceOption,
    DtypeOption,
    MemoryOption,
    RuleOption,
    SeedOption,
    TemperatureOption,
    ThresholdOption,
    integers_of,
    make_folder,
    rule_of,
)
from t3d.credentials import typed_command
from t3d.errors import RequestError
from t3d.types import Decoding

if TYPE_CHECKING:
    from t3d.bench import Queue

app = typer.Typer(help="Measure speed.")

RESULTS = Path("bench", "results")
ANSWER_TOKENS, SECONDS, WARM_UP_SECONDS = "50-2000", 60.0, 10.0
RECIPES = "default: a recipe's"
ShapeOption = Annotated[
    str,
    typer.Option(
        help="sdar-1.7b, sdar-4b, sdar-30b-a3b, smollm2-135m, story-small or tiny.",
        autocompletion=completion.registered(*completion.SHAPES),
    ),
]


@app.callback()
def _group() -> None:
    """Measure speed."""


@app.command()
def rollout(
    shape: ShapeOption,
    concurrency: Annotated[str, typer.Option(help="Comma-separated numbers of requests at once.")] = "1,16,64,256",
    steps_per_block: Annotated[str, typer.Option(help="Comma-separated forward passes a block.")] = "1,2,4",
    block_size: Annotated[int, typer.Option(help="Positions decoded together.")] = 4,
    rule: RuleOption = "low_confidence_static",
    threshold: ThresholdOption = 0.9,
    temperature: TemperatureOption = 0.0,
    prompt_tokens: Annotated[int, typer.Option(help="Of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Of each answer (without a queue).")] = 512,
    requests_per_slot: Annotated[int, typer.Option(help="Requests of a run are so many times the concurrency.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed runs (without a queue); the median counts.")] = 3,
    queue: Annotated[int | None, typer.Option(help="Queue so many and keep every slot full, instead of runs.")] = None,
    answer_tokens: Annotated[str | None, typer.Option(help=f"Of a queue: lengths; default: {ANSWER_TOKENS}.")] = None,
    seconds: Annotated[float | None, typer.Option(help=f"Of a queue: measured; default: {SECONDS:g}.")] = None,
    warm_up: Annotated[float | None, typer.Option(help=f"Of a queue: before; default: {WARM_UP_SECONDS:g}.")] = None,
    backend: Annotated[str, typer.Option(help="continuous, or plain for comparison.")] = "continuous",
    memory_gib: MemoryOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    out: Annotated[Path | None, typer.Option(help="JSON file; default: bench/results/rollout-SHAPE.json.")] = None,
) -> None:
    """Decode with random weights and say how fast, and how near to what the device could do."""
    from rich.console import Console

    from t3d.bench import Plan, bench_rollout, rows_table
    from t3d.models import as_device, as_dtype

    decodings = tuple(
        Decoding(block_size, steps, rule_of(rule), temperature, threshold=threshold, max_new_tokens=new_tokens)
        for steps in integers_of(steps_per_block, "steps-per-block")
    )
    plan = Plan(
        shape=shape,
        concurrencies=tuple(integers_of(concurrency, "concurrency")),
        decodings=decodings,
        prompt_tokens=prompt_tokens,
        requests_per_slot=requests_per_slot,
        repeats=repeats,
        backend=backend,
        memory_gib=memory_gib,
        seed=seed,
        queue=queue_of(queue, answer_tokens, seconds, warm_up),
    )
    plan.check()
    target = as_device(device)
    chosen_dtype = as_dtype(dtype or ("bfloat16" if target.type == "cuda" else None), target)
    assert chosen_dtype is not None
    file = _result_file(out, f"rollout-{shape}{'-queue' if plan.queue else ''}")
    rows = bench_rollout(plan, target, chosen_dtype, file, typed_command())
    Console().print(rows_table(rows))
    print(file)


@app.command()
def train(
    shape: ShapeOption,
    lengths: Annotated[str, typer.Option(help="real (100 + 300 tokens on average) or full (512 + 1,024 each).")],
    objective: Annotated[str, typer.Option(help="t3d, ddo, trajectory_ce or sft.")] = "t3d",
    examples: Annotated[int, typer.Option(help="Of an optimizer step.")] = 256,
    steps: Annotated[int, typer.Option(help="Timed optimizer steps; the median counts.")] = 3,
    warm_up: Annotated[int, typer.Option(help="Optimizer steps before them.")] = 2,
    block_size: BlockOption = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help=f"Of a forward pass; {RECIPES}.")] = None,
    precision: Annotated[str | None, typer.Option(help=f"fp32, tf32, bf16 or bf16_pure; {RECIPES}.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"adamw or adamw_8bit; {RECIPES}.")] = None,
    adapter: Annotated[str, typer.Option(help="none (all weights are trained), lora or dora.")] = "none",
    rank: Annotated[int | None, typer.Option(help=f"Of the adapter; {RECIPES}.")] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4, beside an adapter.")] = None,
    reference: Annotated[str | None, typer.Option(help=f"copy, adapter or offload; {RECIPES}.")] = None,
    attention: Annotated[str | None, typer.Option(help="flex or sdpa; default: flex on cuda.")] = None,
    compile: Annotated[bool | None, typer.Option(help="Compile the layers; default: on cuda.")] = None,
    checkpoint_layers: Annotated[int | None, typer.Option(help=f"Recomputed in the backward; {RECIPES}.")] = None,
    strategy: Annotated[str | None, typer.Option(help=f"Of several processes: ddp or fsdp; {RECIPES}.")] = None,
    gradients: Annotated[str | None, typer.Option(help=f"Of fsdp: whole or sharded; {RECIPES}.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="GiB of the device; needing more is an error.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file; default: bench/results/train-SHAPE-LENGTHS.json.")
    ] = None,
) -> None:
    """Train with random weights and say how fast, with how much memory, and where the time goes."""
    from rich.console import Console

    from t3d.bench import TrainPlan, bench_train, row_table

    plan = TrainPlan(
        shape=shape,
        lengths=lengths,
        objective=objective,
        examples=examples,
        steps=steps,
        warm_up=warm_up,
        block_size=block_size,
        tokens_per_batch=tokens_per_batch,
        precision=precision,
        optimizer=optimizer,
        adapter=None if adapter == "none" else adapter,
        rank=rank,
        quantize=quantize,
        reference=reference,
        attention=attention,
        compile=compile,
        checkpoint_layers=checkpoint_layers,
        strategy=strategy,
        gradients=gradients,
        memory_gib=memory_gib,
        seed=seed,
        device=device,
    )
    plan.check()
    file = _result_file(out, plan.name)
    row = bench_train(plan, file, typed_command())
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        Console().print(row_table(row))
        print(file)


def queue_of(
    num_requests: int | None, answer_tokens: str | None, seconds: float | None, warm_up: float | None
) -> Queue | None:
    """The queue of a command's options, if it has one."""
    from t3d.bench import Queue

    if num_requests is None:
        for option, value in (("answer-tokens", answer_tokens), ("seconds", seconds), ("warm-up", warm_up)):
            if value is not None:
                raise RequestError(f"--{option} is of a queue: give --queue NUMBER too")
        return None
    low, _, high = (answer_tokens or ANSWER_TOKENS).partition("-")
    if not (low.isdecimal() and high.isdecimal()):
        raise RequestError(f"--answer-tokens {answer_tokens!r}: write SHORTEST-LONGEST, such as {ANSWER_TOKENS}")
    return Queue(
        num_requests,
        (int(low), int(high)),
        SECONDS if seconds is None else seconds,
        WARM_UP_SECONDS if warm_up is None else warm_up,
    )


def _result_file(out: Path | None, name: str) -> Path:
    """Where the result goes, in a folder that is there."""
    file = out or RESULTS / f"{name}.json"
    if file.is_dir():
        raise RequestError(f"--out {file}: is a folder; name a file")
    make_folder(file.parent)
    return file

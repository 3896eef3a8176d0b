"""`t3d eval`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t3d import cli_completion as completion
from t3d.cli_options import (
    BackendOption,
    BatchOption,
    BlockOption,
    DeviceOption,
    DtypeOption,
    InstructionOption,
    MemoryOption,
    ModelOption,
    RecipeOption,
    RuleOption,
    SeedOption,
    ShuffleOption,
    StyleOption,
    SystemOption,
    TemperatureOption,
    TensorParallelOption,
    TopKOption,
    TopPOption,
    check_new_folder,
    engine_held_by,
    integers_of,
    numbers_of,
    prompt_form_of,
    rule_of,
    words_of,
)
from t3d.credentials import typed_command
from t3d.errors import RequestError
from t3d.types import Decoding

if TYPE_CHECKING:
    from t3d.evaluation import Benchmark, EvalResult

NOT_DECIDED = ("unparsed", "timeout")
"""Outcomes that say more of the grader than of the answer."""


def evaluate(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Folder for result.json, answers.jsonl and the plot.")],
    benchmark: Annotated[
        str,
        typer.Option(
            help="Comma-separated benchmarks, for example gsm8k,mbpp.",
            autocompletion=completion.registered(*completion.TASKS, separated=True),
        ),
    ] = "story",
    data: Annotated[
        list[str] | None,
        typer.Option(help="File or hub id of the problems; of several benchmarks NAME=FILE, more than once."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the problems; default: the benchmark's test split.")] = None,
    tokens_per_step: Annotated[
        str, typer.Option(help="Comma-separated, each divides the block size; '' for none.")
    ] = "1,2,4",
    threshold: Annotated[
        str, typer.Option(help="Comma-separated thresholds of the dynamic rule, for example 0.7,0.9; '' for none.")
    ] = "0.9",
    entropy_bound: Annotated[
        str, typer.Option(help="Comma-separated bounds in nats of the entropy-bounded rule, for example 0.1,0.5.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="How reports call the model; default: its own name.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems; default: the benchmark's.")] = None,
    shuffle: ShuffleOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem, for pass@k and sharpness.")] = 1,
    block_size: BlockOption = None,
    rule: RuleOption = "low_confidence_static",
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the benchmark's.")] = None,
    prompt_style: StyleOption = None,
    instruction: InstructionOption = None,
    system: SystemOption = None,
    recipe: RecipeOption = None,
    sandbox: Annotated[str, typer.Option(help="What programs run in: auto, bubblewrap, unshare or limits.")] = "auto",
    grader_workers: Annotated[int | None, typer.Option(min=1, help="Answers graded at a time; default: cores.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    backend: BackendOption = None,
    memory_gib: MemoryOption = None,
    tensor_parallel: TensorParallelOption = 1,
) -> None:
    """Measure accuracy against parallelism, with intervals and every forward counted."""
    from t3d import evaluation
    from t3d.tasks import GraderOptions

    if tensor_parallel > 1:
        _check_processes(tensor_parallel, device)
    chosen = benchmarks_of(words_of(benchmark, "benchmark"), data or [], split)
    numbers = integers_of(tokens_per_step, "tokens-per-step") if tokens_per_step else []
    thresholds = numbers_of(threshold, "threshold") if threshold else []
    bounds = numbers_of(entropy_bound, "entropy-bound") if entropy_bound else []
    called = Path(model).name if name is None else name
    if not called.strip():
        raise RequestError("--name is empty: say how reports shall call the model")
    base = Decoding(
        block_size=block_size, rule=rule_of(rule), temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    form = prompt_form_of(recipe, prompt_style, instruction, system)
    asked: dict[str, Any] = {"limit": limit, "seed": seed, "shuffle": shuffle, "samples": samples, "prompt": form}
    options = GraderOptions(num_workers=grader_workers, sandbox=sandbox)
    folder_of = {each.name: out if len(chosen) == 1 else out / each.name for each in chosen}
    if not resume:
        for folder in folder_of.values():
            evaluation.require_unused(folder)
        check_new_folder(out)
    for each in chosen:  # before a model is loaded
        each.problems(limit, shuffle, seed)
        each.task.grader(options).close()

    from t3d.engine import Engine

    build = partial(
        Engine.from_pretrained,
        model,
        dtype=dtype,
        device=device,
        max_batch_size=batch_size,
        backend=backend,
        memory_gib=memory_gib,
    )
    with engine_held_by(tensor_parallel, device, lambda mesh: build(mesh=mesh)) as engine:
        if engine is None:
            return
        exams = []
        for each in chosen:  # all of them before the first runs
            longest = replace(base, max_new_tokens=max_new_tokens or each.task.max_new_tokens)
            settings = evaluation.settings_to_try(numbers, thresholds, longest, engine.model.config.block_size, bounds)
            exams.append(evaluation.prepare(engine, each, settings, **asked))
        for exam in exams:
            folder = folder_of[exam.benchmark.name]
            with _says_how_to_go_on(folder):
                result = evaluation.take_exam(
                    engine,
                    exam,
                    name=called,
                    model=model,
                    out=folder,
                    resume=resume,
                    grader_options=options,
                    command=typed_command(),
                )
            _show(result, folder)


def _check_processes(tensor_parallel: int, device: str | None) -> None:
    """Refuse processes that do not hold one model together; each is to use a GPU of its own."""
    from t3d.trajectories.parts import rank_of, use_own_gpu

    if (count := rank_of(os.environ, tensor_parallel).count) > 1:
        raise RequestError(
            f"t3d eval --tensor-parallel {tensor_parallel} asks one model, and here are processes for {count}: "
            f"start it by torchrun --nproc-per-node {tensor_parallel}"
        )
    use_own_gpu(os.environ, device)


@contextmanager
def _says_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{folder} keeps what is finished: the same t3d eval with --resume goes on") from None


def benchmarks_of(names: Sequence[str], data: Sequence[str], split: str | None) -> list[Benchmark]:
    """The benchmarks of `--benchmark`, `--data` and `--split`.

    Args:
        names: of benchmarks.
        data: each FILE, if there is one benchmark, or NAME=FILE; a hub id may stand for a file.
        split: None is each benchmark's own.

    Raises:
        RequestError: an unknown or repeated benchmark, or data of none or of which is not clear.
    """
    from t3d.evaluation import BENCHMARKS, get_benchmark

    if len(set(names)) < len(names):
        raise RequestError(f"--benchmark {','.join(names)}: names one more than once")
    source_of: dict[str, str] = {}
    for each in data:
        named, separator, source = each.partition("=")
        if not separator or named not in BENCHMARKS:  # the = of a file's name
            named, source = names[0] if len(names) == 1 else "", each
        if named not in names or named in source_of:
            raise RequestError(f"--data {each}: write NAME=FILE, once for a benchmark of --benchmark {','.join(names)}")
        source_of[named] = source
    chosen = [get_benchmark(each, source_of.get(each)) for each in names]
    return chosen if split is None else [replace(each, split=split) for each in chosen]


def _show(result: EvalResult, folder: Path) -> None:
    from rich.console import Console

    from t3d.evaluation import report

    report.plot_accuracy([result], folder / "accuracy.png")
    Console().print(report.result_table([result]))
    sharpness = report.sharpness_table(report.measurements_of([result]))
    if sharpness.groups:
        Console().print(sharpness)
    counts = {outcome: sum(each.verdicts.get(outcome, 0) for each in result.settings) for outcome in NOT_DECIDED}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if told:
        print(f"counted as wrong: {told} (`outcome` in {folder}/answers.jsonl)")
    print(f"{folder}: result.json, answers.jsonl, accuracy.png")

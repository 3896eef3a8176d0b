"""What commands share: options, and the checks that turn them into requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from t3d import cli_completion as completion
from t3d.errors import RequestError, WorkError
from t3d.types import Decoding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from t3d.config import PromptConfig
    from t3d.engine import Engine
    from t3d.tasks import Task
    from t3d.types import Problem

Number = TypeVar("Number", int, float)

ModelOption = Annotated[
    str,
    typer.Option(
        help="Folder, hub id, or story-mini / story-small (-student).",
        autocompletion=completion.models,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu or cuda; default: cuda where there is one.",
        autocompletion=completion.one_of(*completion.DEVICES),
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16.",
        autocompletion=completion.one_of(*completion.DTYPES),
    ),
]
BatchOption = Annotated[int | None, typer.Option(help="Requests decoded together; default: what memory allows.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="continuous or plain; default: continuous on cuda where the model allows it.",
        autocompletion=completion.one_of(*completion.BACKENDS),
    ),
]
MemoryOption = Annotated[
    float | None, typer.Option(min=0.0, help="GiB of the device to use, weights included; default: nine tenths of it.")
]
TensorParallelOption = Annotated[
    int,
    typer.Option(min=1, help="GPUs that hold one model together, each its part; torchrun starts a process for each."),
]
BlockOption = Annotated[int | None, typer.Option(help="Positions decoded together; default: the model's.")]
StepsOption = Annotated[int | None, typer.Option(help="Forward passes a block; default: one per token.")]
RuleOption = Annotated[
    str,
    typer.Option(
        help="Which masked tokens a step reveals.",
        autocompletion=completion.registered(*completion.RULES),
    ),
]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopKOption = Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")]
TopPOption = Annotated[float, typer.Option(help="Keep the smallest set with this probability.")]
ThresholdOption = Annotated[float, typer.Option(help="Of the dynamic rule, in (0, 1].")]
EntropyOption = Annotated[float, typer.Option(help="Nats a step of entropy_bounded may reveal.")]
MaxTokensOption = Annotated[int, typer.Option(help="Longest response, stop token included.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything drawn at random.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        help="Take a task's questions, for example story or gsm8k.",
        autocompletion=completion.registered(*completion.TASKS),
    ),
]
ShuffleOption = Annotated[
    int | None, typer.Option(min=0, help="Seed of the order that --limit takes from; default: the source's own order.")
]
StyleOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-style", help="auto, chat, plain or raw.", autocompletion=completion.one_of(*completion.STYLES)
    ),
]
InstructionOption = Annotated[
    str | None, typer.Option(help="Follows each question on a line of its own; '' for none; default: the task's.")
]
SystemOption = Annotated[str | None, typer.Option(help="System turn of a chat; default: the chat template's.")]
RecipeOption = Annotated[
    Path | None, typer.Option(help="Training recipe whose `prompt` says how questions are put; other options win.")
]


def decoding_of(
    block_size: int | None,
    steps_per_block: int | None,
    rule: str,
    temperature: float,
    top_k: int,
    top_p: float,
    threshold: float,
    entropy_bound: float,
    max_new_tokens: int,
    seed: int,
) -> Decoding:
    """The decoding settings of a command's options."""
    return Decoding(
        block_size=block_size,
        steps_per_block=steps_per_block,
        rule=rule_of(rule),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        threshold=threshold,
        entropy_bound=entropy_bound,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def rule_of(name: str) -> str:
    """A known rule's name: checked before a model is loaded."""
    from t3d.engine.rules import RULES

    if name not in RULES:
        raise RequestError(f"rule {name!r} is unknown: use one of {', '.join(RULES)}")
    return name


def prompt_form_of(recipe: Path | None, style: str | None, instruction: str | None, system: str | None) -> PromptConfig:
    """How questions are to be put: as a recipe's `prompt` says, but for what is given here.

    What neither of them says is left to the task (`t3d.tasks.prompts.resolve_form`).

    Raises:
        RequestError: no such style, or a recipe that cannot be read.
    """
    from t3d.config import PromptConfig, load_recipe

    styles = get_args(PromptConfig.model_fields["style"].annotation)
    if style is not None and style not in styles:
        raise RequestError(f"--prompt-style {style!r} is unknown: use one of {', '.join(styles)}")
    form = load_recipe(recipe).prompt if recipe is not None else PromptConfig()
    given = {"style": style, "instruction": instruction, "system": system}
    return form.model_copy(update={name: value for name, value in given.items() if value is not None})


def problems_of(
    file: Path | None, task: str | None, data: str | None, split: str, limit: int | None, shuffle: int | None, seed: int
) -> tuple[Task, list[Problem]]:
    """A task and the problems of it that a command's options name; a file is all of task `jsonl`.

    Raises:
        RequestError: none or two of them are named, or they cannot be read.
    """
    from t3d.tasks import get_task, take_problems
    from t3d.tasks.sources import ALL

    if (file is None) == (task is None):
        raise RequestError("give either --prompts FILE or --task NAME")
    if file is not None and data is not None:
        raise RequestError("--data is where a task's questions come from: give --task too, or leave it out")
    chosen = get_task("jsonl", str(file)) if file is not None else get_task(task or "", data)
    return chosen, take_problems(chosen, split if file is None else ALL, limit, shuffle, seed)


@contextmanager
def engine_held_by(
    count: int, device: str | None, build: Callable[[DeviceMesh | None], Engine]
) -> Iterator[Engine | None]:
    """The engine that `build` makes; of `count` processes that hold its model together, in the first of them.

    The others get None when the first is through: they have decoded with it, and nothing is left to be done or said.
    """
    if count == 1:
        yield build(None)
        return
    from t3d.engine.sharded.backend import shared_engine

    try:
        with shared_engine(os.environ, count, device, build) as engine:
            yield engine
    except RequestError:
        if int(os.environ["RANK"]) % count:  # the first one says why
            raise typer.Exit(2) from None
        raise


def words_of(text: str, option: str) -> list[str]:
    """Comma-separated words, at least one."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise RequestError(f"--{option} is empty: write values separated by commas")
    return words


def numbers_of(text: str, option: str) -> list[float]:
    """Comma-separated numbers, at least one."""
    return _parsed(text, option, float, "numbers")


def integers_of(text: str, option: str) -> list[int]:
    """Comma-separated whole numbers, at least one."""
    return _parsed(text, option, int, "whole numbers")


def _parsed(text: str, option: str, parse: Callable[[str], Number], kind: str) -> list[Number]:
    words = words_of(text, option)
    try:
        return [parse(word) for word in words]
    except ValueError as error:
        raise RequestError(f"--{option} {text!r}: write {kind} separated by commas") from error


def check_new_folder(path: Path) -> None:
    """Refuse an `--out` that holds something; makes nothing, so that a request refused later leaves no trace."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"--out {path}: holds something already; choose an empty or new folder")


def make_folder(path: Path) -> None:
    """Make `--out`, or use the folder that is there."""
    if path.exists() and not path.is_dir():
        raise RequestError(f"--out {path}: is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"--out {path}: {error.strerror or error}") from error

"""What commands share: options, and the checks that turn them into requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from t3d.errors import RequestError, WorkError
from t3d.types import Decoding

if TYPE_CHECKING:
    from t3d.types import Prompt

Number = TypeVar("Number", int, float)

ModelOption = Annotated[str, typer.Option(help="Folder, hub id, or story-mini / story-small.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
BatchOption = Annotated[int | None, typer.Option(help="Requests decoded together; default: what memory allows.")]
BackendOption = Annotated[
    str | None, typer.Option(help="continuous or plain; default: continuous on cuda where the model allows it.")
]
MemoryOption = Annotated[
    float | None, typer.Option(min=0.0, help="GiB of the device to use, weights included; default: nine tenths of it.")
]
BlockOption = Annotated[int | None, typer.Option(help="Positions decoded together; default: the model's.")]
StepsOption = Annotated[int | None, typer.Option(help="Forward passes a block; default: one per token.")]
RuleOption = Annotated[str, typer.Option(help="Which masked tokens a step reveals.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopKOption = Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")]
TopPOption = Annotated[float, typer.Option(help="Keep the smallest set with this probability.")]
ThresholdOption = Annotated[float, typer.Option(help="Of the dynamic rule, in (0, 1].")]
EntropyOption = Annotated[float, typer.Option(help="Nats a step of entropy_bounded may reveal.")]
MaxTokensOption = Annotated[int, typer.Option(help="Longest response, stop token included.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything drawn at random.")]
TaskOption = Annotated[str | None, typer.Option(help="Take a built-in task's prompts, for example story.")]


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


def prompts_of(file: Path | None, task: str | None, split: str, limit: int | None, seed: int) -> list[Prompt]:
    """The prompts of a file or of a built-in task."""
    from t3d.tasks import get_task, read_prompts

    if (file is None) == (task is None):
        raise RequestError("give either --prompts FILE or --task NAME")
    if file is not None:
        return read_prompts(file)[:limit]
    if limit is None:
        raise RequestError("--task needs --limit: its prompts are endless")
    assert task is not None
    return get_task(task).prompts(split, limit, seed)


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

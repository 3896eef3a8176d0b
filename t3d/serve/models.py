"""The models that are served: each with its engine, its tokenizer and what requests leave open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from t3d import models
from t3d.engine import AsyncEngine
from t3d.engine.continuous.memory import CUDA_SHARE, MAX_SLOTS
from t3d.errors import RequestError, WorkError
from t3d.evaluation.warming import brief_settings
from t3d.models import BlockDiffusionModel
from t3d.serve.fields import MAX_STOPS
from t3d.types import Decoding


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How models are loaded and run.

    Attributes:
        device, dtype: as in `load_model`.
        max_batch_size: requests of one model that are decoded together; None is 256.
        max_positions: of the longest request; None is the model's own limit.
        memory_gib: for all models together; None is nine tenths of what is there.
    """

    device: str | None = None
    dtype: str | None = None
    max_batch_size: int | None = None
    max_positions: int | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class ServedModel:
    """A model that answers.

    Attributes:
        name: by which requests call it.
        engine: its own; all requests have the defaults' block size.
        tokenizer: its own.
        defaults: what requests leave open, `block_size` and `steps_per_block` filled in.
        max_batch_size: requests that the engine decodes together.
        created: when it was loaded, seconds since 1970.
    """

    name: str
    engine: AsyncEngine
    tokenizer: PreTrainedTokenizerBase
    defaults: Decoding
    max_batch_size: int = MAX_SLOTS
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def block_size(self) -> int:
        """B."""
        return self.defaults.block_size or 0  # filled in: never None

    @property
    def max_positions(self) -> int:
        """Of prompt and answer together: whole blocks."""
        return self.engine.max_positions // self.block_size * self.block_size

    @property
    def has_chat_template(self) -> bool:
        """Whether chats of more than one question can be had."""
        return self.tokenizer.chat_template is not None

    def decode(self, token_ids: list[int]) -> str:
        """The text of a response's tokens, as `Engine.generate` gives it."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token, special ones included."""
        text = self.tokenizer.decode([token_id])
        assert isinstance(text, str)
        return text

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()


def name_and_source(spec: str) -> tuple[str, str]:
    """`NAME=PATH`, or a folder, hub id or built-in name that is its own name."""
    name, separator, source = spec.partition("=")
    if not separator or "://" in name or Path(spec).exists():
        return spec, spec
    if not name or not source:
        raise RequestError(f"--model {spec}: write NAME=PATH, or the path alone")
    return name, source


def load_served(specs: Sequence[str], defaults: Decoding, options: ModelOptions) -> list[ServedModel]:
    """Load models and warm their engines up, so that the first request waits for nothing.

    Args:
        specs: as `name_and_source` reads them.
        defaults: of requests; the block size, if None, is each model's own.
        options: for all of them; they share the memory evenly.

    Raises:
        RequestError: a model cannot be had, two have one name, or a default does not suit one.
    """
    named = [name_and_source(spec) for spec in specs]
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"--model {twice}: given twice; write NAME=PATH to give one of them another name")
    loaded = [(name, *_load(source, options)) for name, source in named]  # all weights first: the rest is shared
    device = loaded[0][1].device
    share = share_of_memory(options.memory_gib, _held_gib(device), _free_gib(device), len(loaded))
    served = []
    with ExitStack() as engines:
        for name, model, tokenizer in loaded:
            limit = None if share is None else _held_gib(device) + share
            served.append(serve_model(name, model, tokenizer, defaults, options, limit))
            engines.callback(served[-1].close)
            warm_up(served[-1])  # takes its memory before the next one is planned
        engines.pop_all()
    return served


def serve_model(
    name: str,
    model: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    defaults: Decoding | None = None,
    options: ModelOptions | None = None,
    memory_gib: float | None = None,
) -> ServedModel:
    """Start the engine of a loaded model.

    Args:
        memory_gib: as in `AsyncEngine`.
    """
    options, defaults = options or ModelOptions(), defaults or Decoding()
    resolved = defaults.resolve(model.config.block_size)
    stop_token_ids = models.stop_token_ids(model, tokenizer)
    max_batch_size = options.max_batch_size or MAX_SLOTS
    longest = min(options.max_positions or model.config.max_position_embeddings, model.config.max_position_embeddings)
    if resolved.block_size is not None and longest < resolved.block_size:
        raise RequestError(f"max_positions ({longest}) must be at least block_size ({resolved.block_size})")
    engine = AsyncEngine(
        model,
        stop_token_ids=stop_token_ids,
        max_batch_size=max_batch_size,
        max_positions=longest,
        memory_gib=memory_gib,
        num_stop_tokens=len(stop_token_ids) + MAX_STOPS,
    )
    return ServedModel(name, engine, tokenizer, resolved, max_batch_size)


def warm_up(served: ServedModel) -> None:
    """Let a model answer: caches are laid out, on CUDA kernels compiled and graphs captured for batches of all sizes.

    Waits for it, and may be called where an event loop runs.

    Raises:
        RequestError: memory does not suffice.
        WorkError: the model cannot be run.
    """
    served.tokenizer.encode("warm up", add_special_tokens=False)
    model = served.engine.model
    count = served.max_batch_size if model.device.type == "cuda" else 1
    prompt = [0 if model.config.mask_token_id != 0 else 1]

    async def answer() -> None:
        await served.engine.generate(prompt, replace(served.defaults, max_new_tokens=1))  # shows how much fits
        longest = min(served.defaults.max_new_tokens, served.max_positions - len(prompt))
        settings = brief_settings(replace(served.defaults, max_new_tokens=longest), count)
        await asyncio.gather(*(served.engine.generate(prompt, one) for one in settings))

    try:
        with ThreadPoolExecutor(1) as thread, ExitStack() as engine:  # this one may have an event loop already
            engine.callback(served.close)
            thread.submit(asyncio.run, answer()).result()
            engine.pop_all()
    except WorkError as error:
        raise (error.__cause__ if isinstance(error.__cause__, RequestError) else error) from None


def _load(source: str, options: ModelOptions) -> tuple[BlockDiffusionModel, PreTrainedTokenizerBase]:
    model = models.load_model(source, dtype=options.dtype, device=options.device)
    return model, models.load_tokenizer(source)


def _held_gib(device: torch.device) -> float:
    """What tensors take up on a device, GiB; on the CPU nobody counts."""
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _free_gib(device: torch.device) -> float | None:
    """What a device has for this process beside that, GiB; None on the CPU."""
    if device.type != "cuda":
        return None
    return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 2**30 - _held_gib(device)


def share_of_memory(total: float | None, held: float, free: float | None, count: int) -> float | None:
    """What each of `count` engines may take, graphs and workspace included, GiB; None: as the engine chooses.

    Args:
        total: that the process may hold; None is what it holds and nine tenths of the rest.
        held: with all weights loaded, before the first engine.
        free: what is left then; None where nobody counts.
    """
    if total is not None:
        return (total - held) / count
    return None if free is None else CUDA_SHARE * free / count

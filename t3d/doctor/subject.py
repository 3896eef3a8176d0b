"""The model that a recipe names: its config, its tokenizer, and every weight's shape, without any weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import PreTrainedTokenizerBase

from t3d.bench import SHAPES
from t3d.bench.shapes import shape_config
from t3d.config import Recipe
from t3d.errors import RequestError
from t3d.models import (
    BUILT_IN,
    BlockDiffusionConfig,
    BlockDiffusionModel,
    active_parameters,
    load_tokenizer,
)
from t3d.training.student import Student, hold_in, make_student, weightless, weightless_model

RELEASED = re.compile(r"JetLM/(SDAR-[\w.-]+?)-(?:Chat|Sci)")
"""Hub ids of the released models; those that end in a block size have that one in their config, and are not meant."""
LAYER = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.|^layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight as a process holds it in training.

    Attributes:
        shape: of it.
        itemsize: bytes of an element, before four-bit packing.
        is_trained: whether it has a gradient.
        is_packed: whether it is held in four bits.
        layer: decoder layer that it belongs to; None: embedding, last norm, LM head.
    """

    shape: tuple[int, ...]
    itemsize: int
    is_trained: bool = True
    is_packed: bool = False
    layer: int | None = None

    @property
    def numel(self) -> int:
        """Elements."""
        return self.part(1)

    @property
    def is_matrix(self) -> bool:
        """Whether products are made with it."""
        return len(self.shape) > 1

    def part(self, num_shards: int) -> int:
        """Elements of the largest part when it is dealt out by rows, as `fully_shard` does."""
        rows, *rest = self.shape or (1,)
        elements = -(-rows // num_shards)
        for size in rest:
            elements *= size
        return elements


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is not here.

    Attributes:
        name: as the recipe has it.
        shape: the one of `t3d.bench.SHAPES` that stands for it; None where its own config was read.
        config: of it.
        tokenizer: None for a shape, which has none.
        num_weights, num_active: all, and those that one token goes through.
    """

    name: str
    shape: str | None
    config: BlockDiffusionConfig
    tokenizer: PreTrainedTokenizerBase | None
    num_weights: int
    num_active: int


def find_subject(recipe: Recipe) -> tuple[Recipe, Subject]:
    """The recipe, its model's place now a folder where there is one; and the model.

    A source is a folder, a built-in name, a hub id of which this machine's cache has the config, the hub id of a
    released model whose shapes are known, or one of `t3d.bench.SHAPES`.

    Raises:
        RequestError: none of these, or a config that no model can have.
    """
    source = recipe.model.source
    folder = _folder_of(source) if source is not None else None
    shape = _shape_of(source) if source is not None and folder is None else None
    if shape is not None:
        tokenizer = None
        model = weightless(shape_config(shape) if source == shape else released_config(shape))
    else:
        if folder is not None:
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": folder})})
        tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source or "")
        model = weightless_model(recipe, tokenizer)
    name = source or f"random weights ({model.config.model_type})"
    return recipe, Subject(name, shape, model.config, tokenizer, model.num_parameters(), active_parameters(model))


def _folder_of(source: str) -> str | None:
    """Where the config of a model lies on this machine; None: nowhere."""
    if source in BUILT_IN or Path(source).exists():
        return source
    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # a folder's name, and no hub id
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def _shape_of(source: str) -> str:
    """The shape that a source names: its own name, or a released model's hub id.

    Raises:
        RequestError: none.
    """
    released = RELEASED.fullmatch(source)
    name = released[1].lower() if released else source
    if name not in SHAPES:
        raise RequestError(
            f"model {source}: is not on this machine, and nothing is downloaded for this; make or download it first, "
            f"or give the name of its shape (--set model.source=NAME, one of {', '.join(SHAPES)})"
        )
    return name


def released_config(shape: str) -> BlockDiffusionConfig:
    """Of the released model of a shape, whose LM head is not tied to its embedding, as the hub's config.json says.

    The shapes of `t3d.bench` were measured with tied ones, which are Qwen3's.
    """
    config = shape_config(shape)
    config.tie_word_embeddings = False
    return config


def student_on_paper(recipe: Recipe, config: BlockDiffusionConfig) -> Student:
    """What a recipe, whose precision is filled in, trains: on the meta device.

    Raises:
        RequestError: it cannot be trained as the recipe asks.
    """

    def load(dtype: torch.dtype) -> BlockDiffusionModel:
        return hold_in(dtype, weightless(config))

    return make_student(load, recipe, torch.device("meta"))


def weights_of(model: nn.Module) -> list[Weight]:
    """Every weight of a model, each once, on any device."""
    return [
        Weight(
            shape=tuple(weight.shape),
            itemsize=weight.element_size() if not _is_packed(weight) else 2,
            is_trained=weight.requires_grad,
            is_packed=_is_packed(weight),
            layer=_layer_of(name),
        )
        for name, weight in model.named_parameters()
    ]


def _is_packed(weight: nn.Parameter) -> bool:
    return type(weight).__name__ == "Params4bit"


def _layer_of(name: str) -> int | None:
    found = LAYER.search(name)
    return int(found[1] or found[2]) if found else None

"""What a run trains: a model, whole or by adapters, and how it leaves the run as a plain model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from t3d.config import Recipe
from t3d.models import (
    FAMILIES,
    BlockDiffusionConfig,
    BlockDiffusionModel,
    load_config,
    load_model,
    random_model,
    resolve_model,
    save_model,
)
from t3d.training.copying import copy_model
from t3d.training.parallel.main_process import on_main
from t3d.training.parallel.tensors import deal_out, whole
from t3d.training.precision import loaded_dtype
from t3d.training.requirements import check_training

Loading = Callable[[torch.dtype], BlockDiffusionModel]
"""Gives a model in a dtype, on any device."""


class Student:
    """A model of which some weights are trained: here all.

    Attributes:
        model: what forward passes run.
    """

    def __init__(self, model: BlockDiffusionModel) -> None:
        self.model = model

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by name, each once."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def fill(self) -> None:
        """Give weights that wait for it their values, once they lie where they are trained; all must ask."""

    def whole(self, is_main: bool) -> Student | None:
        """The student as one process has it for itself, on the main one at least; all must ask.

        It shows what is trained now, and need not follow later steps.
        """
        return self

    def exported(
        self, dtype: torch.dtype | None = None, device: str | torch.device | None = None
    ) -> BlockDiffusionModel:
        """A plain copy in eval mode that shares no memory with what is trained.

        Args:
            dtype: of its weights; None is what `save` writes.
            device: None is where the student is.
        """
        exported = copy_model(self.model, placing(dtype or self.model.dtype, device))
        exported.set_attn_implementation("sdpa")  # training may have chosen another
        return exported

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the plain model so that `load_model` reads it, in the dtype in which it is trained.

        Raises:
            WorkError: the disk refuses.
        """
        save_model(self.model, folder, tokenizer, with_checksums=True)


class ShardedStudent(Student):
    """A model that a `Scorer` is about to deal out over all processes, and that no process but the main one reads.

    Args:
        model: without weights, in the dtype in which it is trained.
        load: gives it with weights; None leaves them to a checkpoint.

    Attributes:
        shell: the model without weights, of which copies can be made.
    """

    def __init__(self, model: BlockDiffusionModel, load: Loading | None) -> None:
        super().__init__(model)
        self._load = load
        self.shell = copy_model(model, placing(model.dtype, "meta"))

    def fill(self) -> None:
        """As the base class: the main process reads the whole model into its host's memory, and deals it out by weight.

        Raises:
            RequestError: the model cannot be read; in all processes.
        """
        load, dtype = self._load, self.shell.dtype
        if load is None:
            return
        loaded = on_main(lambda: load(dtype))
        weights = dict(loaded.named_parameters()) if loaded is not None else {}
        for name, own in self.model.named_parameters():
            assert isinstance(own, DTensor)
            deal_out(own, weights.get(name))

    def whole(self, is_main: bool) -> Student | None:
        """As the base class: gathered weight by weight, on the main process into the host's memory; else None."""
        weights = (whole(weight) for weight in self.model.parameters())
        if not is_main:
            for _ in weights:  # asked for, and let go of
                pass
            return None
        return Student(copy_model(self.shell, lambda _: next(weights).to("cpu", copy=True)))


def placing(dtype: torch.dtype, device: str | torch.device | None) -> Callable[[Tensor], Tensor]:
    """Copies a tensor to this dtype and device (None: where it is)."""
    return lambda tensor: tensor.to(device=device, dtype=dtype, copy=True)


def build_student(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    sharded: bool = False,
    goes_on: bool = False,
) -> Student:
    """The student that a recipe names, in training mode, on its device.

    Args:
        recipe: its `model` and `precision`, which is filled in.
        tokenizer: of the model.
        device: where it is trained.
        sharded: it will be dealt out over all processes, and has no weights before.
        goes_on: a checkpoint holds its weights, so that a sharded one need not read others first.

    Raises:
        RequestError: no such model, or it cannot be trained as the recipe asks.
    """

    def load(dtype: torch.dtype) -> BlockDiffusionModel:
        if recipe.model.init is not None:
            return hold_in(dtype, random_model(recipe.model.init, tokenizer, seed=recipe.seed))
        assert recipe.model.source is not None
        return load_model(recipe.model.source, dtype=dtype, device="cpu")

    if sharded:
        return make_sharded_student(weightless_model(recipe, tokenizer), None if goes_on else load, recipe)
    return make_student(load, recipe, device)


def weightless_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> BlockDiffusionModel:
    """The model that a recipe names, its weights mere shapes; buffers (the rotary frequencies) and settings are there.

    Raises:
        RequestError: no such model.
    """
    init, source = recipe.model.init, recipe.model.source or ""
    if init is not None:
        return without_weights(lambda: random_model(init, tokenizer))
    model = weightless(load_config(source))
    with suppress(OSError):  # not every model has such a file
        model.generation_config = GenerationConfig.from_pretrained(resolve_model(source))
    return model


def weightless(config: BlockDiffusionConfig) -> BlockDiffusionModel:
    """A model of these shapes, and no more than shapes."""
    _, model_class = FAMILIES[config.model_type]
    return without_weights(lambda: model_class(config))


def without_weights(build: Callable[[], BlockDiffusionModel]) -> BlockDiffusionModel:
    """What `build` makes, its weights mere shapes on the meta device; buffers are there."""
    with init_empty_weights(include_buffers=False):
        model = build()
    model.tie_weights()  # what makes weights empty makes two of a tied one
    return model


def make_student(load: Loading, recipe: Recipe, device: torch.device) -> Student:
    """The student that a recipe makes of a model, in training mode, on its device.

    Args:
        load: gives the model in a dtype, on any device.
        recipe: whether adapters are trained, beside which weights, in which precision.
        device: where it is trained.

    Raises:
        RequestError: it cannot be trained as the recipe asks.
    """
    check_training(recipe)
    model = load(loaded_dtype(recipe))
    if recipe.model.adapter is None:
        return Student(model.to(device).train())
    from t3d.training.adapters import adapted_student  # here: peft takes seconds to import

    return adapted_student(model, recipe, device)


def make_sharded_student(shell: BlockDiffusionModel, load: Loading | None, recipe: Recipe) -> ShardedStudent:
    """The student that several processes will deal out, in training mode, without weights.

    Args:
        shell: the model without weights.
        load: gives it with weights, on any device; None leaves them to a checkpoint.
        recipe: in which precision it is trained.

    Raises:
        RequestError: it cannot be trained as the recipe asks.
    """
    check_training(recipe)
    return ShardedStudent(hold_in(loaded_dtype(recipe), shell).train(), load)


def hold_in(dtype: torch.dtype, model: BlockDiffusionModel) -> BlockDiffusionModel:
    """The model itself, its weights now in this dtype; buffers (the rotary frequencies) stay in theirs."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model

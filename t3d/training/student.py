"""What a run trains: a model, whole or by adapters, and how it leaves the run as a plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from t3d.config import Recipe
from t3d.models import FAMILIES, BlockDiffusionModel, load_config, load_model, random_model, save_model
from t3d.training.copying import copy_model
from t3d.training.parallel.tensors import whole
from t3d.training.precision import loaded_dtype
from t3d.training.requirements import check_training


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
        save_model(self.model, folder, tokenizer)


class ShardedStudent(Student):
    """A model that a `Scorer` is about to deal out over all processes.

    Args:
        model: not dealt out yet, on any device.

    Attributes:
        shell: the model without weights, of which copies can be made.
    """

    def __init__(self, model: BlockDiffusionModel) -> None:
        super().__init__(model)
        self.shell = copy_model(model, lambda weight: weight.to("meta"))

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
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device, sharded: bool = False
) -> Student:
    """The student that a recipe names, in training mode, on its device.

    Args:
        recipe: its `model` and `precision`, which is filled in.
        tokenizer: of the model.
        device: where it is trained.
        sharded: it will be dealt out over all processes, and waits for that in the host's memory.

    Raises:
        RequestError: no such model, or it cannot be trained as the recipe asks.
    """

    def load(dtype: torch.dtype) -> BlockDiffusionModel:
        if recipe.model.init is not None:
            return hold_in(dtype, random_model(recipe.model.init, tokenizer, seed=recipe.seed))
        assert recipe.model.source is not None
        return load_model(recipe.model.source, dtype=dtype, device="cpu")

    return make_student(load, recipe, device, sharded)


def weightless_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> BlockDiffusionModel:
    """The model that a recipe names, its weights mere shapes.

    Raises:
        RequestError: no such model.
    """
    with torch.device("meta"):
        if recipe.model.init is not None:
            return random_model(recipe.model.init, tokenizer)
        config = load_config(recipe.model.source or "")
        _, model_class = FAMILIES[config.model_type]
        return model_class(config)


def make_student(
    load: Callable[[torch.dtype], BlockDiffusionModel], recipe: Recipe, device: torch.device, sharded: bool = False
) -> Student:
    """The student that a recipe makes of a model, in training mode, on its device.

    Args:
        load: gives the model in a dtype, on any device.
        recipe: whether adapters are trained, beside which weights, in which precision.
        device: where it is trained.
        sharded: it will be dealt out over all processes, from where it is loaded to.

    Raises:
        RequestError: it cannot be trained as the recipe asks.
    """
    check_training(recipe)
    model = load(loaded_dtype(recipe))
    if sharded:
        return ShardedStudent(model.train())
    if recipe.model.adapter is None:
        return Student(model.to(device).train())
    from t3d.training.adapters import adapted_student  # here: peft takes seconds to import

    return adapted_student(model, recipe, device)


def hold_in(dtype: torch.dtype, model: BlockDiffusionModel) -> BlockDiffusionModel:
    """The model itself, its weights now in this dtype; buffers (the rotary frequencies) stay in theirs."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model

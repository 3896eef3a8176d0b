"""What a run trains: a model, whole or by adapters, and how it leaves the run as a plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from t3d.config import Recipe
from t3d.models import BlockDiffusionModel, load_model, random_model, save_model
from t3d.training.copying import copy_model
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


def placing(dtype: torch.dtype, device: str | torch.device | None) -> Callable[[Tensor], Tensor]:
    """Copies a tensor to this dtype and device (None: where it is)."""
    return lambda tensor: tensor.to(device=device, dtype=dtype, copy=True)


def build_student(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Student:
    """The student that a recipe names, in training mode, on its device.

    Args:
        recipe: its `model` and `precision`, which is filled in.
        tokenizer: of the model.
        device: where it is trained.

    Raises:
        RequestError: no such model, or it cannot be trained as the recipe asks.
    """

    def load(dtype: torch.dtype) -> BlockDiffusionModel:
        if recipe.model.init is not None:
            return hold_in(dtype, random_model(recipe.model.init, tokenizer, seed=recipe.seed))
        assert recipe.model.source is not None
        return load_model(recipe.model.source, dtype=dtype, device="cpu")

    return make_student(load, recipe, device)


def make_student(load: Callable[[torch.dtype], BlockDiffusionModel], recipe: Recipe, device: torch.device) -> Student:
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


def hold_in(dtype: torch.dtype, model: BlockDiffusionModel) -> BlockDiffusionModel:
    """The model itself, its weights now in this dtype; buffers (the rotary frequencies) stay in theirs."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model

"""What a run trains: a model, whole or by adapters, and how it leaves the run as a plain model."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from t3d.config import Recipe
from t3d.models import SDARForCausalLM, load_model, random_model, save_model


class Student:
    """A model of which some weights are trained.

    Attributes:
        model: what forward passes run.
    """

    def __init__(self, model: SDARForCausalLM) -> None:
        self.model = model

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by name, each once."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def exported(self, dtype: torch.dtype | None = None) -> SDARForCausalLM:
        """A plain copy in eval mode, on the same device, that shares no memory with what is trained."""
        return copy.deepcopy(self.model).to(dtype or self.model.dtype).eval()

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the plain model so that `load_model` reads it.

        Raises:
            WorkError: the disk refuses.
        """
        save_model(self.model, folder, tokenizer)


def build_student(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device, held_in: torch.dtype
) -> Student:
    """The student that a recipe names, in training mode, on its device.

    Args:
        recipe: its `model`.
        tokenizer: of the model.
        device: where it is trained.
        held_in: dtype of the trained weights.

    Raises:
        RequestError: no such model.
    """
    if recipe.model.init is not None:
        model = random_model(recipe.model.init, tokenizer, seed=recipe.seed).to(held_in)
    else:
        assert recipe.model.source is not None
        model = load_model(recipe.model.source, dtype=held_in, device="cpu")
    return Student(model.to(device).train())

"""What a recipe's `precision` means for products and for weights."""

from __future__ import annotations

import torch

from t3d.config import Recipe


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """What products are computed in."""
    return torch.bfloat16 if recipe.precision in ("bf16", "bf16_pure") else torch.float32


def trained_dtype(recipe: Recipe) -> torch.dtype:
    """What trained weights are held in: float32 takes up updates that bfloat16 would round away."""
    return torch.bfloat16 if recipe.precision == "bf16_pure" else torch.float32


def loaded_dtype(recipe: Recipe) -> torch.dtype:
    """What a model is loaded in: a frozen one, which adapters stand beside, in what products are computed in."""
    return trained_dtype(recipe) if recipe.model.adapter is None else compute_dtype(recipe)

"""Optimizers and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.optim import AdamW, Optimizer

from t3d.config import OptimConfig


def build_optimizer(weights: Iterable[Tensor], optim: OptimConfig) -> Optimizer:
    """AdamW over these weights; vectors (norm weights) do not decay."""
    weights = list(weights)
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_rate_share(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at 0-based `step`: linear warm-up, then cosine to `final_lr_share`."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return optim.final_lr_share + (1 - optim.final_lr_share) * cosine

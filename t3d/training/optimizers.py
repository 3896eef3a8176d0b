"""Optimizers and the learning rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from t3d.config import OptimConfig
from t3d.training.parallel.tensors import sharded_like
from t3d.training.requirements import check_package
from t3d.training.stochastic_adamw import StochasticAdamW


def build_optimizer(weights: Iterable[Tensor], optim: OptimConfig) -> Optimizer:
    """AdamW over these weights; vectors (norm weights) do not decay, and bfloat16 weights are rounded stochastically.

    Raises:
        RequestError: torchao is asked for and not installed.
    """
    weights = list(weights)
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    if optim.optimizer == "adamw_8bit":
        return _adamw_8bit(groups, optim)
    if any(weight.dtype == torch.bfloat16 for weight in weights):
        return StochasticAdamW(groups, lr=optim.lr, betas=optim.betas)
    return AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def _adamw_8bit(groups: list[dict], optim: OptimConfig) -> Optimizer:
    check_package("torchao", "optim.optimizer adamw_8bit")
    warnings.filterwarnings("ignore", message="OptimState8bit does not implement _stable_hash")  # compiled all the same
    from torchao.optim import AdamW8bit

    return AdamW8bit(groups, lr=optim.lr, betas=optim.betas, bf16_stochastic_round=True)


def load_moments_into(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Let an optimizer go on from the `state` of a `state_dict`, whole or sharded; its settings stay."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    placed = {
        index: {
            key: sharded_like(value, weights[index]) if value.shape == weights[index].shape else value
            for key, value in moments.items()
        }
        for index, moments in state.items()
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": placed})


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Of every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a compiled step reads it there
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def learning_rate_share(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at 0-based `step`: linear warm-up, then cosine to `final_lr_share`."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return optim.final_lr_share + (1 - optim.final_lr_share) * cosine

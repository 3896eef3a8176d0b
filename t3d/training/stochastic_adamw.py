"""AdamW for weights held in bfloat16 alone, without float32 ones beside them.

An update is often smaller than half the distance to the next bfloat16, so that rounding to the nearest would lose it
each time; AdamW's second moment, which goes a thousandth of its way a step, would stand still for the same reason. What
is stored is therefore rounded up or down at random, so that it is right on average (Gupta et al. 2015). torchao's AdamW
rounds weights so, but not 16-bit moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from t3d.training.parallel.tensors import local_part

CHUNK = 2**24
"""Weights updated at a time: the float32 copies of a whole embedding would take gigabytes."""
OPTIONS = ("lr", "betas", "eps", "weight_decay")


class StochasticAdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019) computed in float32; bfloat16 weights and moments are rounded stochastically.

    Draws come from torch's default generator of the weights' device. Moments have their weight's dtype.

    Args:
        params: weights, or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient; `closure` computes the loss anew, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        stored = [local_part(tensor).view(-1) for tensor in (weight, state["exp_avg"], state["exp_avg_sq"])]
        flat = (stored[0], local_part(gradient).reshape(-1), *stored[1:])
        for parts in zip(*(tensor.split(CHUNK) for tensor in flat), strict=True):
            _adamw(*parts, step=int(state["step"]), **{name: group[name] for name in OPTIONS})


def _adamw(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step on tensors of one shape, in place; `step` counts from 1."""
    gradient = gradient.float()
    first = exp_avg.float().lerp(gradient, 1 - betas[0])
    second = exp_avg_sq.float().lerp(gradient.square(), 1 - betas[1])
    correction_1, correction_2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    scale = (second.sqrt() / math.sqrt(correction_2)).add_(eps)
    updated = (weight.float() * (1 - lr * weight_decay)).addcdiv_(first, scale, value=-lr / correction_1)
    for stored, value in ((weight, updated), (exp_avg, first), (exp_avg_sq, second)):
        stored.copy_(round_stochastically(value) if stored.dtype == torch.bfloat16 else value)


def round_stochastically(values: Tensor) -> Tensor:
    """float32 of any shape to bfloat16: one of the two neighbours, each with its nearness as probability.

    bfloat16 is the upper half of a float32's bits: a random number below one unit of it is added before the lower half
    is cut off. What is not finite stays so.
    """
    bits = values.view(torch.int32)
    bits = (bits + torch.randint_like(bits, 1 << 16)).bitwise_and_(-(1 << 16))
    return torch.where(values.isfinite(), bits.view(torch.float32), values).bfloat16()

"""What the rules share: the quota of a step, and picking the first few positions of an order."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """Which masked positions a denoising step reveals; a pure function of tensors."""

    def __call__(
        self,
        confidence: Tensor,
        is_masked: Tensor,
        step: int | Tensor,
        steps_per_block: int | Tensor,
        *,
        entropy: Tensor,
        threshold: float | Tensor,
        entropy_bound: float | Tensor,
    ) -> Tensor:
        """Choose. What is not per position is one number for all rows, or a tensor [N] with one for each.

        Args:
            confidence: float [N, B] probability of the candidate at each position (anything where not masked).
            is_masked: bool [N, B].
            step: 0-based step within the block.
            steps_per_block: forward passes a full block gets (T).
            entropy: float [N, B] nats, of the distributions that the candidates were drawn from.
            threshold: confidence above which `low_confidence_dynamic` reveals.
            entropy_bound: nats that one step of `entropy_bounded` may reveal.

        Returns:
            bool [N, B]: only masked positions, and at least one in a row that has any.
        """
        ...


def per_row(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, or a tensor [N], as a tensor [1, 1] or [N, 1] that broadcasts over the positions of a row."""
    return torch.as_tensor(value, device=like.device).reshape(-1, 1)


def quota(step: int | Tensor, steps_per_block: int | Tensor, is_masked: Tensor) -> Tensor:
    """Tokens that a static rule reveals in a step: B // T, and one more in the first B mod T steps.

    Returns:
        int [1, 1] or [N, 1].
    """
    block_size = is_masked.shape[1]
    steps = per_row(steps_per_block, is_masked)
    return block_size // steps + (per_row(step, is_masked) < block_size % steps)


def preference_order(score: Tensor, is_masked: Tensor) -> Tensor:
    """Positions by falling score, those not masked last; equal scores by rising position. int64 [N, B]."""
    return score.masked_fill(~is_masked, -torch.inf).sort(dim=1, descending=True, stable=True).indices


def first_in_order(order: Tensor, count: Tensor, is_masked: Tensor) -> Tensor:
    """The masked ones among the first `count` ([1, 1] or [N, 1]) positions of an order. bool [N, B]."""
    rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(is_masked).scatter(1, order, rank < count) & is_masked

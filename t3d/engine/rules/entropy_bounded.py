"""As many as the model's joint uncertainty allows."""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.engine.rules.common import first_in_order, per_row, preference_order


def entropy_bounded(
    confidence: Tensor,
    is_masked: Tensor,
    step: int | Tensor,
    steps_per_block: int | Tensor,
    *,
    entropy: Tensor,
    threshold: float | Tensor,
    entropy_bound: float | Tensor,
) -> Tensor:
    """Reveal the lowest entropies while their running sum stays within the bound, at least one (see `Rule`).

    The sum of entropies bounds the joint entropy of the tokens revealed together.
    """
    order = preference_order(-entropy, is_masked)
    running_sum = entropy.masked_fill(~is_masked, torch.inf).gather(1, order).cumsum(dim=1)
    within_bound = (running_sum <= per_row(entropy_bound, entropy)).sum(dim=1, keepdim=True)
    return first_in_order(order, within_bound.clamp_min(1), is_masked)

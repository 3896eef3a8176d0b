"""The most confident, a fixed number a step."""

from __future__ import annotations

from torch import Tensor

from t3d.engine.rules.common import first_in_order, preference_order, quota


def low_confidence_static(
    confidence: Tensor,
    is_masked: Tensor,
    step: int | Tensor,
    steps_per_block: int | Tensor,
    *,
    entropy: Tensor,
    threshold: float | Tensor,
    entropy_bound: float | Tensor,
) -> Tensor:
    """Reveal the most confident masked positions, the step's quota of them (see `Rule`)."""
    order = preference_order(confidence, is_masked)
    return first_in_order(order, quota(step, steps_per_block, is_masked), is_masked)

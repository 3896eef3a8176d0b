"""Left to right."""

from __future__ import annotations

from torch import Tensor

from t3d.engine.rules.common import quota


def sequential(
    confidence: Tensor,
    is_masked: Tensor,
    step: int | Tensor,
    steps_per_block: int | Tensor,
    *,
    entropy: Tensor,
    threshold: float | Tensor,
    entropy_bound: float | Tensor,
) -> Tensor:
    """Reveal the leftmost masked positions, the step's quota of them (see `Rule`)."""
    number_among_masked = is_masked.cumsum(dim=1)
    return is_masked & (number_among_masked <= quota(step, steps_per_block, is_masked))

"""Everything the model is sure of."""

from __future__ import annotations

from torch import Tensor

from t3d.engine.rules.common import per_row
from t3d.engine.rules.low_confidence_static import low_confidence_static


def low_confidence_dynamic(
    confidence: Tensor,
    is_masked: Tensor,
    step: int | Tensor,
    steps_per_block: int | Tensor,
    *,
    entropy: Tensor,
    threshold: float | Tensor,
    entropy_bound: float | Tensor,
) -> Tensor:
    """Reveal every masked position above the threshold, and at least the static quota (see `Rule`)."""
    at_least = low_confidence_static(
        confidence,
        is_masked,
        step,
        steps_per_block,
        entropy=entropy,
        threshold=threshold,
        entropy_bound=entropy_bound,
    )
    return at_least | (is_masked & (confidence > per_row(threshold, confidence)))

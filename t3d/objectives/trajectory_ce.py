"""Cross-entropy to the teacher's tokens on trajectory states: the paper's plain trajectory distillation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Objective, Scores, mean_over_step, mean_per_example


class TrajectoryCE(Objective):
    """Mean cross-entropy over an example's hidden tokens."""

    hider: ClassVar[str] = "order"

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; no metrics beside the loss."""
        return mean_over_step(mean_per_example(-scores.real, tokens), tokens), {}

"""Supervised fine-tuning on finished texts: the block-diffusion NELBO.

Source: masked diffusion's negative evidence lower bound with a linear schedule (each block hides each token with
probability t ~ U(0, 1] and weighs it 1/t), a token of the response: the weights come from `hide_by_chance`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Objective, Scores, mean_over_step, sum_per_example


class SFT(Objective):
    """`sum_i CE_i / (t_i L)` an example of L response tokens."""

    hider: ClassVar[str] = "chance"
    needs_trajectories: ClassVar[bool] = False

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; no metrics beside the loss."""
        return mean_over_step(sum_per_example(-scores.real * tokens.weights, tokens), tokens), {}

"""T3D: DDO plus path consistency. Source: the T3D paper's objective; design section 5."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Scores, mean_over_step
from t3d.objectives.ddo import DDO
from t3d.objectives.path import path_loss


class T3D(DDO):
    """`L_ddo + path_weight * L_path`.

    Attributes:
        path_weight: lambda.
        path_k: tokens that each level of the path term adds.
    """

    path_weight: float = Field(0.2, ge=0)
    path_k: int = Field(4, ge=1)

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; metrics: those of DDO and the path term."""
        ddo, metrics = super().__call__(scores, tokens)
        path = mean_over_step(path_loss(-scores.real, tokens, self.path_k), tokens)
        return ddo + self.path_weight * path, {**metrics, "ddo": ddo.detach(), "path": path.detach()}

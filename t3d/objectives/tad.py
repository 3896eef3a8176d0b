"""TAD: the teacher's tokens where it is about to reveal them, its distributions where it is not.

Source: TAD (public code `BHmingyang/TAD`, `LLaDA/train_llada.py`). Its teacher reads the gold answer in the system
prompt; ours sees what the student sees and needs no labels, so that the far term only holds the student to what the
teacher already believed there. It takes all states of a trajectory evenly: set `corruption.ratio_power: 0` for that.
Its `delta` counts steps of one token each through the whole response; here every block is in a state of its own, and
`delta` counts tokens in the order in which the teacher revealed the block.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Objective, Scores, mean_over_step, mean_per_example


class TAD(Objective):
    """`mean_{i near} CE_i + kl_weight * mean_{i far} KL(teacher || student)_i` an example.

    A hidden token is near if it is among the next `delta` that the teacher revealed in its block, else far; a term
    without tokens is 0. The public code's delta is 8 in blocks of 32 tokens.

    Attributes:
        delta: tokens of each block that count as near.
        kl_weight: of the far term.
    """

    hider: ClassVar[str] = "order"
    needs_teacher: ClassVar[bool] = True

    delta: int = Field(2, ge=1)
    kl_weight: float = Field(1.0, ge=0)

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; metrics: both terms, the divergence without its weight."""
        assert scores.divergence is not None
        is_near = tokens.turns < self.delta
        near = mean_over_step(mean_per_example(-scores.real, tokens, is_near), tokens)
        far = mean_over_step(mean_per_example(scores.divergence, tokens, ~is_near), tokens)
        return near + self.kl_weight * far, {"near": near.detach(), "far": far.detach()}

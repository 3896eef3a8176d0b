"""dParallel: cross-entropy, and certainty where the student is right, on a random mask and on its complement.

Source: dParallel (public code `czg1225/dParallel`, `LLaDA/llada_train.py`). It hides tokens of one block of 32 and all
that follows it; a block here never sees what follows, so all blocks of a response are trained at once, on the model's
own grid. Its loss is the sum over both halves, ours the mean over examples, of which each half is one: half of it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Objective, Scores, mean_over_step, mean_per_example


class DParallel(Objective):
    """`mean_i CE_i + entropy_weight * mean_{i right} H_i` an example.

    H_i is the entropy of the student's softmax at `entropy_temperature`; a hidden token is right if its argmax is the
    clean token. An example in which none is has no entropy term.

    Attributes:
        entropy_weight: c.
        entropy_temperature: below 1 it looks at the likeliest tokens more than at the tail.
    """

    hider: ClassVar[str] = "coin"
    with_complement: ClassVar[bool] = True

    entropy_weight: float = Field(2.0, ge=0)
    entropy_temperature: float = Field(0.5, gt=0)

    @property
    def needs_entropy_at(self) -> float | None:
        """As `Objective`."""
        return self.entropy_temperature

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; metrics: both terms, the entropy without its weight."""
        assert scores.entropy is not None
        cross_entropy = mean_over_step(mean_per_example(-scores.real, tokens), tokens)
        is_right = scores.argmax == tokens.targets
        entropy = mean_over_step(mean_per_example(scores.entropy, tokens, is_right), tokens)
        metrics = {"cross_entropy": cross_entropy.detach(), "entropy": entropy.detach()}
        return cross_entropy + self.entropy_weight * entropy, metrics

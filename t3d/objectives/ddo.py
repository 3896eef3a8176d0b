"""DDO: prefer the teacher's tokens over those that the reference would produce (mode-seeking).

Source: the T3D paper's direct discriminative optimisation; design section 5.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from t3d.corruption.records import LossTokens
from t3d.objectives.base import Objective, Scores, mean_over_step, mean_per_example


class DDO(Objective):
    """`-log sigma(beta [l(y) - l_ref(y)]) - alpha log(1 - sigma(beta [l(y') - l_ref(y')]))` an example.

    l is the mean log-probability over the example's hidden tokens, y the teacher's tokens (real), y' the reference's
    argmax (fake).

    Attributes:
        alpha: weight of the fake term.
        beta: how sharply a difference of mean log-probabilities counts.
    """

    hider: ClassVar[str] = "order"
    needs_reference: ClassVar[bool] = True

    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.1, gt=0)

    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective`; metrics: both terms and the two gaps of mean log-probability."""
        assert scores.fake is not None
        assert scores.reference_real is not None
        assert scores.reference_fake is not None
        real_gap = mean_per_example(scores.real - scores.reference_real, tokens)
        fake_gap = mean_per_example(scores.fake - scores.reference_fake, tokens)
        real = mean_over_step(-logsigmoid(self.beta * real_gap), tokens)
        # log(1 - sigma(x)) = logsigmoid(-x), which cannot overflow
        fake = mean_over_step(-self.alpha * logsigmoid(-self.beta * fake_gap), tokens)
        metrics = {
            "ddo_real": real,
            "ddo_fake": fake,
            "real_gap": mean_over_step(real_gap, tokens),
            "fake_gap": mean_over_step(fake_gap, tokens),
        }
        return real + fake, {name: value.detach() for name, value in metrics.items()}

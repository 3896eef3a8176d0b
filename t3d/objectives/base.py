"""What an objective is: a pure function `(scores, tokens) -> (loss, metrics)` that never runs a model.

It says which scores it needs, and the trainer runs each model once a batch for them.

Shape legend: M tokens with loss in the batch, E examples in the batch.

Every objective is a mean over the examples of the optimizer step. A batch holds part of them, so its loss is the sum
over its examples divided by the step's number of examples; the parts add up to the mean however a step is cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from t3d.config.base import first_fault
from t3d.corruption.records import LossTokens
from t3d.errors import RequestError


@dataclass(slots=True)
class Scores:
    """What the models say of the M tokens with loss; what only some objectives need is None unless it is asked for.

    Attributes:
        real: float32 [M] student's log-probability of the clean token.
        argmax: int64 [M] the student's most likely token.
        fake: float32 [M] student's log-probability of the reference's token.
        reference_real: float32 [M] reference's log-probability of the clean token.
        reference_fake: float32 [M] reference's log-probability of its own token.
        entropy: float32 [M] nats, of the student's softmax at the temperature that the objective names.
        divergence: float32 [M] nats, KL(teacher || student).
    """

    real: Tensor
    argmax: Tensor
    fake: Tensor | None = None
    reference_real: Tensor | None = None
    reference_fake: Tensor | None = None
    entropy: Tensor | None = None
    divergence: Tensor | None = None


class Objective(BaseModel, ABC):
    """An objective's fields are the options a recipe may set; an unknown one is an error.

    Class attributes:
        hider: how its examples are corrupted, a name in `t3d.corruption.HIDERS`.
        with_complement: whether each row gives two examples of a step: what one hides the other shows.
        needs_reference: whether a reference, which follows the student, scores each batch too.
        needs_teacher: whether the divergence from the teacher is needed, which is the model that the run started from.
            A run holds one frozen model: no objective needs both.
        needs_trajectories: whether rows must carry a reveal order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hider: ClassVar[str]
    with_complement: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    needs_trajectories: ClassVar[bool] = True

    @property
    def needs_entropy_at(self) -> float | None:
        """Temperature of the softmax whose entropy is needed; None if none is."""
        return None

    @abstractmethod
    def __call__(self, scores: Scores, tokens: LossTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (float32 scalar, this batch's part of the step's mean) and metrics that add up the same way."""

    @classmethod
    def from_options(cls, name: str, options: Mapping[str, object]) -> Self:
        """Build from a recipe's options; the first wrong one is named in one line."""
        try:
            return cls(**options)
        except ValidationError as error:
            known = ", ".join(cls.model_fields) or "none"
            raise RequestError(f"objective {name}: {first_fault(error)} (options: {known})") from error


def sum_per_example(values: Tensor, tokens: LossTokens) -> Tensor:
    """float [M] -> [E] sums over each example's tokens."""
    return torch.zeros(tokens.num_examples, dtype=values.dtype, device=values.device).index_add(
        0, tokens.example, values
    )


def mean_per_example(values: Tensor, tokens: LossTokens, chosen: Tensor | None = None) -> Tensor:
    """float [M] -> [E] means over each example's tokens; 0 for an example without any.

    Args:
        values: of the tokens.
        tokens: whose example each is.
        chosen: bool [M], over which tokens the means go; None is all.
    """
    if chosen is not None:
        values = torch.where(chosen, values, 0.0)
    ones = torch.ones_like(values) if chosen is None else chosen.to(values.dtype)
    counts = sum_per_example(ones, tokens).clamp_min(1)  # bincount would wait for the device
    return sum_per_example(values, tokens) / counts


def mean_over_step(values: Tensor, tokens: LossTokens) -> Tensor:
    """float [E] -> scalar: this batch's part of the mean over the optimizer step's examples."""
    return values.sum() / tokens.num_examples_in_step

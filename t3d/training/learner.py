"""One optimizer step: the reference judges, the student scores, the objective weighs, the optimizer updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t3d.config import Recipe
from t3d.corruption import PackedBatch
from t3d.models.scoring import TokenScores
from t3d.objectives import Objective
from t3d.objectives.base import mean_over_step, mean_per_example
from t3d.training.optimizers import build_optimizer, learning_rate_share, set_learning_rate
from t3d.training.reference import CopyReference, Reference, copy_into
from t3d.training.scorer import Scorer, judge_batch, score_batch
from t3d.training.student import Student


@dataclass(frozen=True, slots=True)
class LearnerState:
    """What goes on exactly where it stopped.

    Attributes:
        weights: what is trained, by name, on its device.
        reference: the reference's tensors, empty without one.
        optimizer: its `state_dict`.
    """

    weights: dict[str, Tensor]
    reference: dict[str, Tensor]
    optimizer: dict[str, Any]


class Learner:
    """Student, reference and optimizer of one run.

    Attributes:
        student: what is trained.
        reference: the frozen model, if the objective needs one.
        optimizer: over the student's trained weights.
    """

    def __init__(self, student: Student, objective: Objective, recipe: Recipe, accelerator: Accelerator) -> None:
        self.student, self._objective, self._recipe, self._accelerator = student, objective, recipe, accelerator
        self._computes_in = compute_dtype(recipe)
        self.reference: Reference | None = (
            CopyReference(student, self._computes_in) if objective.needs_reference else None
        )
        self.optimizer = build_optimizer(student.trainable().values(), recipe.optim)
        self._scorer = accelerator.prepare_model(Scorer(student.model))

    def step(self, batches: Iterable[PackedBatch], number: int) -> dict[str, Tensor]:
        """Optimizer step `number` (1-based) over this process's batches of it; returns metrics on the device."""
        parts = [batch.to(self._accelerator.device) for batch in batches]
        totals: dict[str, Tensor] = {}
        for index, (batch, judged) in enumerate(zip(parts, self._judge(parts), strict=True)):
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._scorer):
                loss, metrics = self._batch_loss(batch, judged)
                # DDP averages gradients over processes; the loss is already a share of the global mean
                self._accelerator.backward(loss * self._accelerator.num_processes)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        totals = {name: self._accelerator.reduce(value, "sum") for name, value in totals.items()}
        return {**totals, **self._update(number)}

    def state(self) -> LearnerState:
        """Everything that a later `load` needs; the tensors are the live ones."""
        return LearnerState(
            weights={name: weight.detach() for name, weight in self.student.trainable().items()},
            reference=self.reference.tensors() if self.reference is not None else {},
            optimizer=self.optimizer.state_dict(),
        )

    def load(self, state: LearnerState) -> None:
        """Go on from a state.

        Raises:
            ValueError: it belongs to another model.
        """
        copy_into(self.student.trainable(), state.weights)
        if self.reference is not None:
            self.reference.load(state.reference)
        self.optimizer.load_state_dict(state.optimizer)

    def _judge(self, batches: Sequence[PackedBatch]) -> list[TokenScores | None]:
        """What the reference says of each batch of the step: it is woken once."""
        if self.reference is None:
            return [None] * len(batches)
        with self.reference.awake() as scorer, self._autocast():
            return [judge_batch(scorer, batch, self._recipe.reference.temperature) for batch in batches]

    def _batch_loss(self, batch: PackedBatch, judged: TokenScores | None) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast():
            scores = score_batch(self._scorer, batch, judged)
        loss, metrics = self._objective(scores, batch.tokens)
        agreement = mean_per_example((scores.argmax == batch.tokens.targets).float(), batch.tokens)
        return loss, {**metrics, "agreement": mean_over_step(agreement, batch.tokens)}

    def _update(self, number: int) -> dict[str, Tensor]:
        optim = self._recipe.optim
        grad_norm = self._accelerator.clip_grad_norm_(self._scorer.parameters(), optim.clip_norm)
        learning_rate = optim.lr * learning_rate_share(number - 1, optim)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        every = self._recipe.reference.refresh_every
        if self.reference is not None and every and number % every == 0:
            self.reference.refresh()
        return {"grad_norm": grad_norm, "lr": torch.tensor(learning_rate)}

    def _autocast(self) -> torch.autocast:
        lower = self._computes_in == torch.bfloat16
        return torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=lower)


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """What products are computed in."""
    return torch.bfloat16 if recipe.precision in ("bf16", "bf16_pure") else torch.float32

"""One optimizer step: the frozen model judges, the student scores, the objective weighs, the optimizer updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from t3d.config import Recipe
from t3d.corruption import PackedBatch
from t3d.models.flex import span_block_mask
from t3d.objectives import Objective
from t3d.objectives.base import mean_over_step, mean_per_example
from t3d.training.computing import computing_of
from t3d.training.copying import copy_into
from t3d.training.draws import seed_dropout, seed_rounding
from t3d.training.finite import NotFinite
from t3d.training.memory import checkpoint_layers, choose_layers
from t3d.training.optimizers import build_optimizer, learning_rate_share, load_moments_into, set_learning_rate
from t3d.training.parallel.processes import processes_of
from t3d.training.phases import BACKWARD, FORWARD, OPTIMIZER, REFERENCE, Phases
from t3d.training.precision import compute_dtype
from t3d.training.reference import Reference, build_reference
from t3d.training.scorer import Scorer, Verdict, consult, score_batch
from t3d.training.student import Student
from t3d.training.throughput import Work, training_flops


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
        reference: the frozen model, if the objective needs one: a reference or a teacher.
        refresh_every: optimizer steps after which it follows the student; 0: never.
        optimizer: over the student's trained weights.
        computing: how forward passes are carried out.
        checkpointed_layers: of the student; None until the first step has seen what memory allows.

    `phases` is told which part of a step runs (`t3d.training.phases`).
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        recipe: Recipe,
        accelerator: Accelerator,
        phases: Phases | None = None,
    ) -> None:
        self.student, self._objective, self._recipe, self._accelerator = student, objective, recipe, accelerator
        self._phase = phases or Phases()
        self._computes_in = compute_dtype(recipe)
        self._processes = processes_of(recipe, accelerator)
        self.computing = computing_of(recipe, student.model.config, accelerator.device, self._processes.sharded)
        self._own_scorer = Scorer(student.model, self.computing)
        self._scorer = self._processes.hold(self._own_scorer)
        student.fill()
        self.reference: Reference | None = (
            build_reference(student, recipe, self.computing, self._processes)
            if objective.needs_reference or objective.needs_teacher
            else None
        )
        self.refresh_every = recipe.reference.refresh_every if objective.needs_reference else 0
        self.optimizer = build_optimizer(student.trainable().values(), recipe.optim)
        self.checkpointed_layers: int | None = None
        if recipe.compute.checkpoint_layers is not None or accelerator.device.type != "cuda":
            self._checkpoint(recipe.compute.checkpoint_layers or 0)

    def step(self, batches: Iterable[PackedBatch], number: int) -> dict[str, Tensor]:
        """Optimizer step `number` (1-based) over this process's batches of it; returns metrics on the device.

        Raises:
            NotFinite: loss or gradient is not, in all processes at once; nothing has changed.
        """
        seed_dropout(self._recipe.seed, number, self._accelerator.process_index)
        parts = [self._placed(batch) for batch in batches]
        if self.checkpointed_layers is None:
            self._choose_layers(parts)
        totals: dict[str, Tensor] = {}
        for index, (batch, verdict) in enumerate(zip(parts, self._verdicts(parts), strict=True)):
            with self._processes.backward(self._scorer, last=index == len(parts) - 1):
                with self._phase(FORWARD):
                    loss, metrics = self._batch_loss(self._scorer, batch, verdict)
                with self._phase(BACKWARD):
                    # gradients are averaged over processes; the loss is already a share of the global mean
                    self._accelerator.backward(loss * self._accelerator.num_processes)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        totals = {name: self._accelerator.reduce(value, "sum") for name, value in totals.items()}
        with self._phase(OPTIMIZER):
            return {**totals, **self._update(number, totals["loss"])}

    @torch.no_grad()
    def rows_not_finite(self, apart: Sequence[PackedBatch]) -> list[str]:
        """The rows of all processes whose own loss is not finite.

        Args:
            apart: this process's examples, each in a batch of its own, and as many batches as any other process has.
        """
        parts = [self._placed(batch) for batch in apart]
        losses = [
            self._batch_loss(self._own_scorer, *each)[0] for each in zip(parts, self._verdicts(parts), strict=True)
        ]
        self._processes.rest(self._own_scorer)
        own = [row for loss, batch in zip(losses, parts, strict=True) if not loss.isfinite() for row in batch.row_ids]
        return sorted(set(gather_object(own)))

    def flops(self, work: Work) -> float:
        """Floating-point operations that steps of this much work need (`training_flops`)."""
        return training_flops(
            self.student.model.config,
            work,
            has_reference=self.reference is not None,
            trains_all=self._recipe.model.adapter is None,
        )

    def state(self) -> LearnerState:
        """Everything that a later `load` needs; the tensors are the live ones, this process's parts of sharded ones."""
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
        load_moments_into(self.optimizer, state.optimizer["state"])

    def _placed(self, batch: PackedBatch) -> PackedBatch:
        """On the device, with what its attention needs: made once, for reference and student."""
        batch = batch.to(self._accelerator.device)
        if self.computing.attention == "flex":
            batch.block_mask = span_block_mask(batch.spans)
        return batch

    def _choose_layers(self, batches: Sequence[PackedBatch]) -> None:
        largest = max(batches, key=lambda batch: batch.input_ids.numel())
        budget = self._recipe.batch.tokens_per_batch
        scratch = self._processes.scratch_bytes(self.student.model)
        with self._autocast():
            count = choose_layers(self._own_scorer, largest, self.optimizer, budget, scratch)
        counts = self._accelerator.gather(torch.tensor([count], device=self._accelerator.device))
        self._checkpoint(int(counts.max()))  # alike in all processes, which wait for each other

    def _checkpoint(self, count: int) -> None:
        self.checkpointed_layers = min(count, len(self.student.model.model.layers))
        if count:
            checkpoint_layers(self.student.model, self.checkpointed_layers)

    def _verdicts(self, batches: Sequence[PackedBatch]) -> Sequence[Verdict | None]:
        """What the frozen model says of each batch of the step: it is woken once."""
        if self.reference is None:
            return [None] * len(batches)
        with self._phase(REFERENCE), self.reference.awake() as scorer, self._autocast():
            temperature = self._recipe.reference.temperature
            return [consult(scorer, batch, self._objective, temperature) for batch in batches]

    def _batch_loss(
        self, scorer: nn.Module, batch: PackedBatch, verdict: Verdict | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast():
            scores = score_batch(scorer, batch, verdict, self._objective.needs_entropy_at)
        loss, metrics = self._objective(scores, batch.tokens)
        agreement = mean_per_example((scores.argmax == batch.tokens.targets).float(), batch.tokens)
        return loss, {**metrics, "agreement": mean_over_step(agreement, batch.tokens)}

    def _update(self, number: int, loss: Tensor) -> dict[str, Tensor]:
        optim = self._recipe.optim
        grad_norm = self._processes.clip(self.student.trainable().values(), optim.clip_norm)
        self._require_finite(number, {"loss": loss, "grad_norm": grad_norm})
        learning_rate = optim.lr * learning_rate_share(number - 1, optim)
        set_learning_rate(self.optimizer, learning_rate)
        seed_rounding(self._recipe.seed, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.reference is not None and self.refresh_every and number % self.refresh_every == 0:
            self.reference.refresh()
        return {"grad_norm": grad_norm, "lr": torch.tensor(learning_rate)}

    def _require_finite(self, number: int, values: dict[str, Tensor]) -> None:
        """The one wait for the device in a step: no update is begun before it is known to be a good one."""
        is_broken = ~torch.stack([value.float() for value in values.values()]).isfinite()
        broken: list[int] = self._accelerator.reduce(is_broken.int(), "sum").tolist()  # all processes decide alike
        if any(broken):
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFinite(number, [name for name, count in zip(values, broken, strict=True) if count])

    def _autocast(self) -> torch.autocast:
        lower = self._computes_in == torch.bfloat16
        return torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=lower)

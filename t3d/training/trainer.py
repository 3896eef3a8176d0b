"""The training loop: a step is corrupt, score, weigh, update, refresh the reference."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase

from t3d.config import OptimConfig, Recipe
from t3d.corruption import PackedBatch
from t3d.errors import RequestError, WorkError
from t3d.models import SDARForCausalLM, as_device, load_model, load_tokenizer, save_model
from t3d.models.building import random_model
from t3d.objectives import build_objective
from t3d.objectives.base import mean_over_step, mean_per_example
from t3d.progress import progress
from t3d.training.checkpoint import Checkpoints
from t3d.training.data import Share, StepDataset, load_rows, prepared_steps
from t3d.training.reference import Reference
from t3d.training.run_folder import RunFolder
from t3d.training.scorer import Scorer, score_batch

logger = logging.getLogger(__name__)


def train(recipe: Recipe, resume: bool = False) -> SDARForCausalLM:
    """Run a recipe to its end and return the student; `recipe.out` holds model, checkpoints and metrics.

    Raises:
        RequestError: the recipe asks for something that cannot be.
        WorkError: the loss became non-finite, or the disk refused.
    """
    return Trainer(recipe, resume).run()


class Trainer:
    """One training run: models, data and optimizer, built from a recipe."""

    def __init__(self, recipe: Recipe, resume: bool = False) -> None:
        self.recipe = recipe
        self.objective = build_objective(recipe.objective.name, **recipe.objective.options)
        as_device(recipe.device)  # accelerate would take the CPU in place of a missing GPU without a word
        self.accelerator = Accelerator(
            mixed_precision="no",  # it would hold for every later run of the process; `_batch_loss` sets its own
            cpu=recipe.device == "cpu",
            step_scheduler_with_optimizer=False,
        )
        torch.set_float32_matmul_precision("high" if recipe.precision == "tf32" else "highest")
        self.tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source or "")
        self.model = _build_model(recipe, self.tokenizer)
        self._dataset = self._load_data()
        self.folder = RunFolder(recipe, resume)
        self.accelerator.wait_for_everyone()  # nobody may take the main process's new files for an earlier run
        if self.accelerator.is_main_process:
            self.folder.open()
        self.checkpoints = Checkpoints(self.folder.checkpoints, recipe.checkpoint.keep)
        self.model.to(self.accelerator.device).train()
        self.reference = (
            Reference(self.model, recipe.reference.refresh_every) if self.objective.needs_reference else None
        )
        self.optimizer = _adamw(self.model, recipe.optim)
        self.finished_steps = self._restore() if resume else 0
        self.student = self.accelerator.prepare_model(Scorer(self.model))

    def run(self) -> SDARForCausalLM:
        """Train to the last step, then save the student."""
        recipe, total, is_main = self.recipe, self.recipe.optim.steps, self.accelerator.is_main_process
        steps = prepared_steps(self._dataset, self.finished_steps, total, recipe.batch.num_workers)
        log = self.folder.open_metrics(self.finished_steps, writes=is_main)
        started = time.monotonic()
        with contextlib.closing(log), progress("train", total, "steps", self.finished_steps, shown=is_main) as bar:
            for batches in steps:
                metrics = self.train_step(batches)
                self.finished_steps += 1
                shown: dict[str, float | str] = {}
                if self.finished_steps % recipe.log_every == 0 or self.finished_steps == total:
                    values = self._finite(metrics)
                    log.write(self.finished_steps, {**values, "seconds": time.monotonic() - started})
                    shown = {"loss": values["loss"], "agreement": values["agreement"]}
                bar.advance(1, **shown)
                self._maybe_checkpoint()
        if is_main:
            save_model(self.model, self.folder.model, self.tokenizer)
        self.accelerator.wait_for_everyone()
        return self.model.eval()

    def train_step(self, batches: Iterable[PackedBatch]) -> dict[str, Tensor]:
        """One optimizer step over this process's batches of it; returns metrics as tensors on the device."""
        totals: dict[str, Tensor] = {}
        parts = list(batches)
        for index, batch in enumerate(parts):
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.student):
                loss, metrics = self._batch_loss(batch.to(self.accelerator.device))
                # DDP averages gradients over processes; the loss is already a share of the global mean
                self.accelerator.backward(loss * self.accelerator.num_processes)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        totals = {name: self.accelerator.reduce(value, "sum") for name, value in totals.items()}
        totals["grad_norm"] = self.accelerator.clip_grad_norm_(self.student.parameters(), self.recipe.optim.clip_norm)
        learning_rate = self.recipe.optim.lr * learning_rate_share(self.finished_steps, self.recipe.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        totals["lr"] = torch.tensor(learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.reference is not None:
            self.reference.after_step(self.finished_steps + 1, self.model)
        return totals

    def _batch_loss(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        reference = self.reference.scorer if self.reference is not None else None
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
            scores = score_batch(self.student, reference, self.objective, batch, self.recipe.reference.temperature)
        loss, metrics = self.objective(scores, batch.tokens)
        agreement = mean_per_example((scores.argmax == batch.tokens.targets).float(), batch.tokens)
        return loss, {**metrics, "agreement": mean_over_step(agreement, batch.tokens)}

    def _finite(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        if not all(math.isfinite(value) for value in values.values()):
            broken = ", ".join(name for name, value in values.items() if not math.isfinite(value))
            kept = self.checkpoints.newest()
            where = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
            raise WorkError(f"step {self.finished_steps}: {broken} not finite; {where}; try a lower optim.lr")
        return values

    def _load_data(self) -> StepDataset:
        recipe, num_processes = self.recipe, self.accelerator.num_processes
        if recipe.optim.examples_per_step < num_processes:
            raise RequestError(
                f"optim.examples_per_step {recipe.optim.examples_per_step}: must be at least one for each of the "
                f"{num_processes} processes"
            )
        if self.objective.needs_trajectories and recipe.data.task:
            raise RequestError(
                f"objective {recipe.objective.name}: needs trajectories, not data.task; run t3d rollout first"
            )
        return StepDataset(
            load_rows(recipe.data, self.tokenizer, self.model.config),
            corruption=recipe.corruption,
            hider=self.objective.hider,
            batch=recipe.batch,
            examples_per_step=recipe.optim.examples_per_step,
            model=self.model.config,
            seed=recipe.seed,
            share=Share(self.accelerator.process_index, num_processes),
        )

    def _restore(self) -> int:
        newest = self.checkpoints.newest()
        if newest is None:
            return 0
        reference = self.reference.model if self.reference is not None else None
        return self.checkpoints.load(newest, self.model, self.optimizer, reference)

    def _maybe_checkpoint(self) -> None:
        every = self.recipe.checkpoint.every_steps
        if not every or self.finished_steps % every:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise WorkError(f"step {self.finished_steps}: weights are not finite; earlier checkpoints are intact")
        reference = self.reference.model if self.reference is not None else None
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.finished_steps, self.model, self.optimizer, reference)


def learning_rate_share(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at 0-based `step`: linear warm-up, then cosine to `final_lr_share`."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return optim.final_lr_share + (1 - optim.final_lr_share) * cosine


def _adamw(model: SDARForCausalLM, optim: OptimConfig) -> AdamW:
    """AdamW; norm weights (vectors) do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def _build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> SDARForCausalLM:
    if recipe.model.init is not None:
        return random_model(recipe.model.init, tokenizer, seed=recipe.seed)
    assert recipe.model.source is not None
    # training keeps float32 master weights; `precision` sets what the forward pass computes in
    return load_model(recipe.model.source, dtype="float32", device="cpu")

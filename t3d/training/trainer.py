"""A training run: rows in, steps, and on the way metrics, checkpoints and the student."""

from __future__ import annotations

import contextlib
import math
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from t3d.config import Recipe
from t3d.errors import RequestError, WorkError
from t3d.models import SDARForCausalLM, as_device, load_tokenizer
from t3d.objectives import build_objective
from t3d.progress import progress
from t3d.training.checkpoint import Checkpoints
from t3d.training.data import Share, StepDataset, load_rows, prepared_steps
from t3d.training.learner import Learner
from t3d.training.run_folder import RunFolder
from t3d.training.student import build_student


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
        self.objective = build_objective(recipe.objective.name, **recipe.objective.options)
        as_device(recipe.device)  # accelerate would take the CPU in place of a missing GPU without a word
        self.accelerator = Accelerator(
            mixed_precision="no",  # it would hold for every later run of the process; the learner sets its own
            cpu=recipe.device == "cpu",
            step_scheduler_with_optimizer=False,
        )
        self.recipe = recipe = with_precision(recipe, self.accelerator.device)
        torch.set_float32_matmul_precision("high" if recipe.precision == "tf32" else "highest")
        self.tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source or "")
        held_in = torch.bfloat16 if recipe.precision == "bf16_pure" else torch.float32
        student = build_student(recipe, self.tokenizer, self.accelerator.device, held_in)
        self._dataset = self._load_data(student.model)
        self.folder = RunFolder(recipe, resume)
        self.accelerator.wait_for_everyone()  # nobody may take the main process's new files for an earlier run
        if self.accelerator.is_main_process:
            self.folder.open()
        self.checkpoints = Checkpoints(self.folder.checkpoints, recipe.checkpoint.keep)
        self.learner = Learner(student, self.objective, recipe, self.accelerator)
        self.finished_steps = self._restore() if resume else 0

    @property
    def model(self) -> SDARForCausalLM:
        """What is trained."""
        return self.learner.student.model

    def run(self) -> SDARForCausalLM:
        """Train to the last step, then save the student."""
        recipe, total, is_main = self.recipe, self.recipe.optim.steps, self.accelerator.is_main_process
        steps = prepared_steps(self._dataset, self.finished_steps, total, recipe.batch.num_workers)
        log = self.folder.open_metrics(self.finished_steps, writes=is_main)
        started = time.monotonic()
        with contextlib.closing(log), progress("train", total, "steps", self.finished_steps, shown=is_main) as bar:
            for batches in steps:
                metrics = self.learner.step(batches, self.finished_steps + 1)
                self.finished_steps += 1
                shown: dict[str, float | str] = {}
                if self.finished_steps % recipe.log_every == 0 or self.finished_steps == total:
                    values = self._finite(metrics)
                    log.write(self.finished_steps, {**values, "seconds": time.monotonic() - started})
                    shown = {"loss": values["loss"], "agreement": values["agreement"]}
                bar.advance(1, **shown)
                self._maybe_checkpoint()
        if is_main:
            self.learner.student.save(self.folder.model, self.tokenizer)
        self.accelerator.wait_for_everyone()
        return self.model.eval()

    def _finite(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        if not all(math.isfinite(value) for value in values.values()):
            broken = ", ".join(name for name, value in values.items() if not math.isfinite(value))
            kept = self.checkpoints.newest()
            where = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
            raise WorkError(f"step {self.finished_steps}: {broken} not finite; {where}; try a lower optim.lr")
        return values

    def _load_data(self, model: SDARForCausalLM) -> StepDataset:
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
            load_rows(recipe.data, self.tokenizer, model.config),
            corruption=recipe.corruption,
            hider=self.objective.hider,
            batch=recipe.batch,
            examples_per_step=recipe.optim.examples_per_step,
            model=model.config,
            seed=recipe.seed,
            share=Share(self.accelerator.process_index, num_processes),
        )

    def _restore(self) -> int:
        newest = self.checkpoints.newest()
        return 0 if newest is None else self.checkpoints.load(newest, self.learner)

    def _maybe_checkpoint(self) -> None:
        every = self.recipe.checkpoint.every_steps
        if not every or self.finished_steps % every:
            return
        state = self.learner.state()
        if not all(bool(torch.isfinite(weight).all()) for weight in state.weights.values()):
            raise WorkError(f"step {self.finished_steps}: weights are not finite; earlier checkpoints are intact")
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.finished_steps, state)


def with_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with its precision filled in: bf16 on CUDA, fp32 on the CPU."""
    if recipe.precision is not None:
        return recipe
    return recipe.model_copy(update={"precision": "bf16" if device.type == "cuda" else "fp32"})

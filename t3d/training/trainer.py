"""A training run: rows in, steps, and on the way metrics, evaluations, checkpoints and the student."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from t3d.config import Recipe
from t3d.corruption import PackedBatch
from t3d.errors import RequestError, WorkError
from t3d.models import BlockDiffusionModel, device_name, load_tokenizer
from t3d.objectives import build_objective
from t3d.training.computing import computing_of
from t3d.training.data import Share, StepDataset, load_rows, prepared_steps
from t3d.training.device import prepare_device
from t3d.training.finite import LeftOut, NotFinite, all_finite, describe_rows
from t3d.training.learner import Learner
from t3d.training.parallel.strategy import check_evaluation, is_sharded, num_shards, with_strategy
from t3d.training.requirements import check_shares, check_training
from t3d.training.run.checkpoint import Checkpoints
from t3d.training.run.folder import METRICS_FILE, RunFolder, steps_of_finished
from t3d.training.run.interrupts import Interrupts, deferred_interrupts
from t3d.training.run.meter import Meter
from t3d.training.run.metrics import Logged, check_metrics
from t3d.training.run.moments import load_moments, save_moments
from t3d.training.run.reporting import RunReport, report_on
from t3d.training.run.sharded_checkpoint import ShardedCheckpoints
from t3d.training.run.tracking import check_trackers
from t3d.training.run.watching import Watcher
from t3d.training.student import build_student, weightless_model

logger = logging.getLogger(__name__)


class Trainer:
    """One training run: models, data and optimizer, built from a recipe.

    Attributes:
        finished_steps: optimizer steps, those of earlier parts of a resumed run included.
        left_out: steps whose loss or gradient was not finite; they count as finished.
        stopped_early: evaluation found nothing better for as long as the recipe's patience.
        interrupted: somebody asked the run to stop when it was over anyway; what it is a part of is to stop.
    """

    def __init__(self, recipe: Recipe, resume: bool = False) -> None:
        self.objective = build_objective(recipe.objective.name, **recipe.objective.options)
        check_trackers(recipe.tracking)
        self.accelerator, recipe = prepare_device(recipe)
        self.tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source or "")
        self.recipe = recipe = self._shared_out(recipe)
        sharded = is_sharded(recipe, self.accelerator.num_processes)
        self.folder = RunFolder(recipe, resume)
        kind, kept = (ShardedCheckpoints if sharded else Checkpoints), recipe.checkpoint
        self.checkpoints = kind(self.folder.checkpoints, kept.keep, kept.asynchronous)
        newest = self._newest_of_all() if resume else None
        student = build_student(recipe, self.tokenizer, self.accelerator.device, sharded, goes_on=newest is not None)
        self._dataset = self._load_data(student.model)
        self.watcher = (
            Watcher(recipe.evaluation, recipe, student, self.tokenizer, self.folder.best, self.accelerator.device)
            if recipe.evaluation is not None
            else None
        )
        self.learner = Learner(student, self.objective, recipe, self.accelerator)
        self.left_out = LeftOut()
        self._logged: Logged | None = None
        self.finished_steps, self._seconds_before = self._restore(newest) if resume else (0, 0.0)
        if self.finished_steps == 0 and recipe.optim.moments_from is not None:
            load_moments(self.learner.optimizer, Path(recipe.optim.moments_from))
        self._saved_steps, self._saved_at = self.finished_steps, time.monotonic()
        self.stopped_early = self.watcher is not None and self.watcher.wants_to_stop
        self.interrupted = False
        self.accelerator.wait_for_everyone()  # nobody may take the main process's new files for an earlier run
        if self.accelerator.is_main_process:
            self.folder.open(**self._facts_of_start(resume))

    @property
    def model(self) -> BlockDiffusionModel:
        """What is trained."""
        return self.learner.student.model

    @property
    def is_over(self) -> bool:
        """Whether no step is left to do."""
        return self.stopped_early or self.finished_steps == self.recipe.optim.steps

    @property
    def _keeps_any(self) -> bool:
        """Whether the run keeps checkpoints."""
        return self.recipe.checkpoint.every_steps > 0 or self.recipe.checkpoint.every_minutes > 0

    def run(self) -> None:
        """Train to the last step, or until evaluation sees no more progress; then save the student.

        Raises:
            KeyboardInterrupt: somebody asked the run to stop; its message says from where it goes on.
            WorkError: loss, gradient or weights became non-finite, or the disk refused.
        """
        first, total = self.finished_steps, self.recipe.optim.steps
        is_main = self.accelerator.is_main_process
        with (
            deferred_interrupts() as interrupts,
            self.checkpoints,
            report_on(self.recipe, self.folder, self._meter(), first, is_main, self._logged) as report,
            contextlib.closing(prepared_steps(self._dataset, first, total, self._num_workers())) as steps,
        ):
            self._evaluate_if_due(report, interrupts)
            self._checkpoint_if_due(report, interrupts)
            while not self.is_over:
                self._step(next(steps), report)
                self._evaluate_if_due(report, interrupts)
                self._checkpoint_if_due(report, interrupts)
            self._require_finite_weights()
            student = self.learner.student.whole(is_main)
            if is_main:
                assert student is not None
                student.save(self.folder.model, self.tokenizer)
            if self.recipe.optim.keep_moments:
                save_moments(self.learner.optimizer, self.folder.path, writes=is_main)
            if is_main:
                self.folder.close(self._outcome(report))
            self.accelerator.wait_for_everyone()
            (self.interrupted,) = self._any(interrupts.asked)

    def _step(self, batches: list[PackedBatch], report: RunReport) -> None:
        number = self.finished_steps + 1
        try:
            metrics = self.learner.step(batches, number)
        except NotFinite as found:
            self._leave_out(found, report)
            report.left_out(batches)
            return
        self.finished_steps = number
        self.left_out.in_a_row = 0
        if self.left_out.total:
            metrics["left_out"] = torch.tensor(self.left_out.total)
        report.step(number, metrics, batches)

    def _leave_out(self, found: NotFinite, report: RunReport) -> None:
        """Go on without a step that could not be made, or stop there, as the recipe says.

        Raises:
            WorkError: the run stops; a checkpoint of the step before is on disk, if the run keeps any.
        """
        optim, place = self.recipe.optim, self.finished_steps
        self._require_finite_weights()
        rows = describe_rows(self.learner.rows_not_finite(self._dataset.apart(place)), self._dataset.rows_of(place))
        what = f"{found} {rows}; nothing of it was taken over"
        if optim.on_nonfinite == "stop" or self.left_out.in_a_row == optim.max_skipped:
            if self._keeps_any and self.finished_steps > self._saved_steps:
                self._checkpoint(report)
                self.checkpoints.wait()
                self.accelerator.wait_for_everyone()  # so that each of them can name it
            cure = "try a lower optim.lr, mend the rows, or go on without such steps: optim.on_nonfinite=skip"
            if optim.on_nonfinite == "skip":
                cure = f"{optim.max_skipped} steps before it were left out too (optim.max_skipped)"
            raise WorkError(f"{what}; {self._last_checkpoint()}; {cure}") from found
        self.left_out.count()
        self.finished_steps += 1
        if self.accelerator.is_main_process:
            logger.warning("%s; going on without it", what)

    def _evaluate_if_due(self, report: RunReport, interrupts: Interrupts) -> None:
        """The main process evaluates, the others wait for what it says of stopping."""
        watcher, is_main = self.watcher, self.accelerator.is_main_process
        if watcher is None or not watcher.is_due(self.finished_steps):
            return
        self._require_finite_weights()
        student = self.learner.student.whole(is_main)
        finished = False
        if is_main:
            assert student is not None
            finished = report.evaluation(self.finished_steps, watcher, student, interrupts)
        del student
        (finished,) = self._any(finished)
        if finished:
            watcher.record(self.finished_steps)
        (self.stopped_early,) = self._any(is_main and watcher.wants_to_stop)

    def _checkpoint_if_due(self, report: RunReport, interrupts: Interrupts) -> None:
        """Also where the run ends before its last step; an interrupted one ends here."""
        config, is_main = self.recipe.checkpoint, self.accelerator.is_main_process
        minutes = (time.monotonic() - self._saved_at) / 60
        interrupted, by_clock = self._any(
            interrupts.asked, is_main and config.every_minutes > 0 and minutes >= config.every_minutes
        )
        by_steps = config.every_steps > 0 and self.finished_steps % config.every_steps == 0
        ends_here = (interrupted and not self.is_over) or self.stopped_early
        if (by_steps or by_clock or (self._keeps_any and ends_here)) and self.finished_steps > self._saved_steps:
            self._checkpoint(report)
        if interrupted and not self.is_over:
            self.checkpoints.wait()
            self.accelerator.wait_for_everyone()  # so that each of them can name it
            raise KeyboardInterrupt(f"stopped after step {self.finished_steps}; {self._where_it_goes_on()}")

    def _checkpoint(self, report: RunReport) -> None:
        self._require_finite_weights()
        state = self.learner.state()
        if self.accelerator.is_main_process or isinstance(self.checkpoints, ShardedCheckpoints):
            self.checkpoints.save(self.finished_steps, state, self._progress(report))
        self._saved_steps, self._saved_at = self.finished_steps, time.monotonic()

    def _progress(self, report: RunReport) -> dict[str, Any]:
        """What a resumed run must know beside the learner's state."""
        return {
            "seconds": report.meter.seconds,
            "metrics": report.logged,
            "evaluated": self.watcher.evaluated if self.watcher is not None else [],
            "left_out": asdict(self.left_out),
        }

    def _newest_of_all(self) -> Path | None:
        """The newest checkpoint that the main process sees: all go on from that one, or refuse to."""
        newest: list[Path | None] = broadcast_object_list([self.checkpoints.newest()])
        return newest[0]

    def _restore(self, newest: Path | None) -> tuple[int, float]:
        """Go on from a checkpoint, if there is one; returns finished steps, and the seconds that they took.

        Raises:
            RequestError: nothing is left to do, or the checkpoint cannot be used.
        """
        if newest is None:
            if steps_of_finished(self.folder.path) is not None:  # it would be trained anew, over what it left
                raise RequestError(f"out {self.folder.path}: this run is finished; {self.folder.model} is its student")
            if self.accelerator.is_main_process:
                logger.warning("out %s: holds no checkpoint to go on from; starting from step 0", self.folder.path)
            return 0, 0.0
        step, progress = self.checkpoints.load(newest, self.learner)
        if self.watcher is not None:
            self.watcher.evaluated = list(progress.get("evaluated", ()))
        self.left_out = LeftOut(**progress.get("left_out", {}))
        self._logged = check_metrics(self.folder.path / METRICS_FILE, progress.get("metrics"))
        return step, float(progress.get("seconds", 0.0))

    def _outcome(self, report: RunReport) -> dict[str, Any]:
        best = self.watcher.best if self.watcher is not None else None
        return {
            "step": self.finished_steps,
            "steps": self.recipe.optim.steps,
            "left_out": self.left_out.total,
            "stopped_early": self.finished_steps < self.recipe.optim.steps,
            "seconds": report.meter.seconds,
            "best": None if best is None else {"step": best.step, "accuracy": best.accuracy},
        }

    def _meter(self) -> Meter:
        return Meter(self.accelerator, self.learner.flops, self._seconds_before)

    def _require_finite_weights(self) -> None:
        """Before anything is made of the weights that stays: a checkpoint, the best student, the last one."""
        if not all_finite(self.learner.state().weights.values()):
            where = self._last_checkpoint()
            raise WorkError(f"weights after step {self.finished_steps} not finite; {where}; try a lower optim.lr")

    def _last_checkpoint(self) -> str:
        self.checkpoints.wait()
        newest = self.checkpoints.newest()
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was written yet"

    def _where_it_goes_on(self) -> str:
        newest = self.checkpoints.newest()
        return f"--resume goes on from {newest}" if newest else "no checkpoint is on disk (checkpoint.every_minutes)"

    def _num_workers(self) -> int:
        """Processes that prepare batches; a CUDA device would have to wait for this one."""
        asked = self.recipe.batch.num_workers
        return asked if asked is not None else 2 * (self.accelerator.device.type == "cuda")

    def _any(self, *asked: bool) -> list[bool]:
        """What at least one process asks for; each gets the same answer."""
        if self.accelerator.num_processes == 1:
            return list(asked)
        flags: Tensor = torch.tensor(asked, dtype=torch.int32, device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(flags, "sum").tolist()]

    def _facts_of_start(self, resume: bool) -> dict[str, Any]:
        return {
            "resume": resume,
            "finished_steps": self.finished_steps,
            "device": device_name(self.accelerator.device),
            "num_processes": self.accelerator.num_processes,
        }

    def _shared_out(self, recipe: Recipe) -> Recipe:
        """The recipe, which now says how the processes share it; refused if the main one could not evaluate so."""
        count, device = self.accelerator.num_processes, self.accelerator.device
        if count == 1:
            return recipe
        num_weights = weightless_model(recipe, self.tokenizer).num_parameters()
        recipe = with_strategy(recipe, num_weights, count, device)
        if is_sharded(recipe, count):
            check_training(recipe)
            check_evaluation(recipe, num_weights, num_shards(recipe, count), device)
        return recipe

    def _load_data(self, model: BlockDiffusionModel) -> StepDataset:
        recipe, num_processes = self.recipe, self.accelerator.num_processes
        check_shares(recipe, num_processes)
        assert recipe.data is not None, "rounds are run by t3d.training.train"
        return StepDataset(
            load_rows(recipe.data, self.tokenizer, model.config, recipe.prompt),
            corruption=recipe.corruption,
            objective=self.objective,
            batch=recipe.batch,
            num_steps=recipe.optim.steps,
            examples_per_step=recipe.optim.examples_per_step,
            model=model.config,
            seed=recipe.seed,
            share=Share(self.accelerator.process_index, num_processes),
            tiled=computing_of(recipe, model.config, self.accelerator.device).attention == "flex",
        )

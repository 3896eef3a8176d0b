"""Teacher in the loop: rounds of rollout and training that talk through trajectories on disk.

out/
  recipe.json, starts.jsonl           of the whole run
  rounds.json                         which parts are finished, with their sizes and seconds
  teacher/                            the model of round 1, where the recipe gives shapes in place of one
  round-1/trajectories/               what was rolled out
  round-1/full-step/, round-1/kept/   `keep: agreeing`: the same prompts at one token a step; the rows that agree
  round-1/training/                   a run folder like any other
  model/                              the last round's student

A part that a kill left unfinished is gone on with and ends as if it had never stopped.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from t3d import trajectories
from t3d.config import Recipe
from t3d.engine import Engine
from t3d.errors import WorkError
from t3d.evaluation import label_of
from t3d.models import SDARForCausalLM, load_model, load_tokenizer, random_model, save_model
from t3d.training.device import prepare_device, release_memory
from t3d.training.precision import compute_dtype
from t3d.training.rounds.data import agreeing, figures_of, grader_of
from t3d.training.rounds.plan import MODEL, TEACHER, Round, plan_rounds, teacher_of
from t3d.training.rounds.record import RoundsFile
from t3d.training.run.folder import RECIPE_FILE, RunFolder, steps_of_finished
from t3d.training.run.tracking import check_trackers
from t3d.training.run.watching import replace_folder
from t3d.training.trainer import Trainer
from t3d.types import Decoding

LONGEST_ROLLOUT = timedelta(days=30)
"""Processes that wait longer for the one that rolls out give up."""


def train(recipe: Recipe, resume: bool = False) -> SDARForCausalLM:
    """`run_recipe`, and the student that it left, in eval mode."""
    run_recipe(recipe, resume)
    return load_model(Path(recipe.out) / MODEL, device=recipe.device)


def run_recipe(recipe: Recipe, resume: bool = False) -> None:
    """Run a recipe to its end; `recipe.out` then holds the student in `model`, and all else.

    Raises:
        RequestError: the recipe asks for something that cannot be.
        WorkError: the loss became non-finite, a round has nothing to learn from, or the disk refused.
    """
    (RoundsRun if recipe.rounds else Trainer)(recipe, resume).run()


class RoundsRun:
    """The rounds of a recipe, from the first rollout to the last student. One process rolls out, all train."""

    def __init__(self, recipe: Recipe, resume: bool = False) -> None:
        check_trackers(recipe.tracking)
        self._accelerator, self.recipe = prepare_device(recipe)
        self._is_main = self._accelerator.is_main_process
        self._processes = _patient_group() if self._accelerator.num_processes > 1 else None
        self._tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source or "")
        self.rounds = plan_rounds(self.recipe, self._tokenizer)
        self.out = Path(recipe.out)
        folder = RunFolder(self.recipe, resume)
        self._finished = RoundsFile(recipe.out)
        self._wait()  # nobody may take the main process's new files for an earlier run
        if self._is_main:
            folder.open(num_processes=self._accelerator.num_processes, resume=resume)

    def run(self) -> None:
        """Do what is not done yet."""
        if self._is_main:
            self._write_teacher()
        for each in self.rounds:
            if each.training in self._finished:
                continue
            if self._is_main:
                self._roll_out(each)
                self._keep(each)
            self._wait()
            self._train(each)
        if self._is_main:
            self._publish()
        self._wait()

    def _write_teacher(self) -> None:
        """Random weights, where the recipe gives shapes: a rollout's model is a folder."""
        if self.recipe.model.init is not None and TEACHER not in self._finished:
            model = random_model(self.recipe.model.init, self._tokenizer, seed=self.recipe.seed)
            save_model(model, self.out / TEACHER, self._tokenizer)
            self._finished.add(TEACHER, {"parameters": model.num_parameters()})

    def _roll_out(self, each: Round) -> None:
        todo = {folder: decoding for folder, decoding in each.rollouts.items() if folder not in self._finished}
        if todo:
            self._decode(each, todo)
            release_memory()

    def _decode(self, each: Round, rollouts: Mapping[str, Decoding]) -> None:
        engine, samples = self._engine(each), each.config.rollout.samples
        for folder, decoding in rollouts.items():
            who = "teacher" if each.roller == teacher_of(self.recipe) else "student"
            pace = label_of(decoding).replace("/", " per ") + (", to compare" if decoding == each.full_step else "")
            self._say(each, f"the {who} rolls out {len(each.questions.prompts) * samples:,} answers at {pace}")
            started = time.monotonic()
            trajectories.rollout(
                engine,
                each.questions.prompts,
                decoding,
                self.out / folder,
                model_name=each.roller,
                form=each.questions.form,
                samples=samples,
                resume=True,
            )
            seconds = time.monotonic() - started
            self._finished.add(folder, {**figures_of(self.out / folder), "seconds": seconds})

    def _engine(self, each: Round) -> Engine:
        rollout = each.config.rollout
        model = load_model(each.roller, dtype=rollout.dtype or compute_dtype(self.recipe), device=self.recipe.device)
        return Engine(
            model,
            self._tokenizer,
            max_batch_size=rollout.batch_size,
            backend=rollout.backend,
            memory_gib=rollout.memory_gib,
        )

    def _keep(self, each: Round) -> None:
        """Write down the answers to learn from, and make sure that there are some."""
        few_step, *full_step = each.rollouts
        if full_step and each.data not in self._finished:
            with grader_of(each.config.rollout) or nullcontext() as grader:
                rows = agreeing(
                    trajectories.read(self.out / few_step),
                    trajectories.read(self.out / full_step[0]),
                    grader,
                )
            trajectories.write(self.out / each.data, rows, trajectories.read_meta(self.out / few_step), resume=True)
            self._finished.add(each.data, figures_of(self.out / each.data))
        self._check_something_is_left(each)

    def _check_something_is_left(self, each: Round) -> None:
        few_step, *_ = each.rollouts
        of, kept = self._finished[few_step]["answers"], self._finished[each.data]
        if each.full_step is not None:
            self._say(each, f"{kept['answers']:,} of {of:,} answers agree with full-step decoding and are kept")
        if not kept["answers"]:
            raise WorkError(
                f"round {each.number}: none of {of:,} answers agrees with its full-step answer; "
                "raise rollout.steps_per_block or set keep: all, and choose another out"
            )
        if not (each.config.keep_unfinished or kept["ended_by"].get("stop")):
            raise WorkError(
                f"round {each.number}: none of {kept['answers']:,} answers ended by a stop token; "
                "raise rollout.max_new_tokens or set keep_unfinished, and choose another out"
            )

    def _train(self, each: Round) -> None:
        recipe = each.recipe(self.recipe)
        self._say(each, f"the student starts from {each.start} and trains to step {recipe.optim.steps:,}")
        started = time.monotonic()
        steps = _run_training(recipe)
        release_memory()
        if self._is_main:
            self._finished.add(each.training, {"steps": steps, "seconds": time.monotonic() - started})

    def _publish(self) -> None:
        if MODEL not in self._finished:
            last = self.rounds[-1]
            _copy(self.out / last.training / MODEL, self.out / MODEL)
            self._finished.add(MODEL, {"from": last.folder(f"training/{MODEL}")})

    def _say(self, each: Round, what: str) -> None:
        if self._is_main:
            print(f"round {each.number} of {len(self.rounds)}: {what}", file=sys.stderr, flush=True)

    def _wait(self) -> None:
        """For all processes."""
        if self._processes is not None:
            torch.distributed.barrier(self._processes)


def _run_training(recipe: Recipe) -> int:
    """Begin a training or go on with it; returns its steps. Nothing of it is left in memory but garbage."""
    finished = steps_of_finished(Path(recipe.out))
    if finished is not None:  # a kill came before it was written down
        return finished
    trainer = Trainer(recipe, resume=(Path(recipe.out) / RECIPE_FILE).exists())
    trainer.run()
    return trainer.finished_steps


def _patient_group() -> torch.distributed.ProcessGroup:
    """All processes: in groups for training a wait of more than minutes counts as a fault."""
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_ROLLOUT)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder so that `target` appears whole."""

    def write(empty: Path) -> None:
        shutil.copytree(source, empty, dirs_exist_ok=True)

    try:
        replace_folder(target, write)
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or 'cannot be written'}; {source} holds the same model") from error

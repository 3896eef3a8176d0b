"""Teacher in the loop: rounds of rollout and training that talk through trajectories on disk.

out/
  recipe.json, starts.jsonl           of the whole run
  rounds.json                         which parts are finished, with their sizes and seconds
  teacher/                            the model of round 1, where the recipe gives shapes in place of one
  round-1/trajectories/               what was rolled out
  round-1/completed/                  `completed_by: teacher`: what it made of them
  round-1/full-step/, round-1/kept/   `keep`: the same prompts at one token a step; the rows that these bear out
  round-1/training/                   a run folder like any other
  round-1/judged/                     `stop_rounds`: answers by which the round's student is judged
  model/                              the last round's student, or the best one's

A part that a kill left unfinished is gone on with and ends as if it had never stopped.
"""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from t3d.config import Recipe
from t3d.errors import WorkError, tell
from t3d.models import BlockDiffusionModel, load_model, load_tokenizer, random_model, save_model
from t3d.training.device import prepare_device, release_memory
from t3d.training.rounds.judging import accuracy_of, best_round, is_enough
from t3d.training.rounds.plan import MODEL, TEACHER, Round, plan_rounds
from t3d.training.rounds.record import RoundsFile
from t3d.training.rounds.rolling import Roller, Say
from t3d.training.run.folder import RECIPE_FILE, RunFolder, steps_of_finished
from t3d.training.run.tracking import check_trackers
from t3d.training.run.watching import replace_folder
from t3d.training.trainer import Trainer

LONGEST_ROLLOUT = timedelta(days=30)
"""Processes that wait longer for the one that rolls out give up."""


def train(recipe: Recipe, resume: bool = False) -> BlockDiffusionModel:
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
        self._roller = Roller(self.recipe, self._tokenizer, self._finished)
        self._wait()  # nobody may take the main process's new files for an earlier run
        if self._is_main:
            folder.open(num_processes=self._accelerator.num_processes, resume=resume)

    def run(self) -> None:
        """Do what is not done yet."""
        if self._is_main:
            self._write_teacher()
        for each in self.rounds:
            if each.training not in self._finished:
                if self._is_main:
                    self._roll_out(each)
                self._wait()
                self._train(each)
            if self._is_main:
                self._judge(each)
            self._wait()
            self._finished.read()  # what the main process has found
            if self._is_enough(each):
                break
        if self._is_main:
            self._publish()
        self._wait()

    def _write_teacher(self) -> None:
        """Random weights, where the recipe gives shapes: a rollout's model is a folder."""
        if self.recipe.model.init is not None and TEACHER not in self._finished:
            model = random_model(self.recipe.model.init, self._tokenizer, seed=self.recipe.seed)
            save_model(model, self.out / TEACHER, self._tokenizer, with_checksums=True)
            self._finished.add(TEACHER, {"parameters": model.num_parameters()})

    def _roll_out(self, each: Round) -> None:
        """Write down the answers to learn from, and make sure that there are some."""
        self._roller.roll_out(each.rollout, self._speaker(each))
        if each.chooses:
            self._roller.keep(each.rollout, each.data, exactly=each.config.keep == "identical")
        self._check_something_is_left(each)

    def _check_something_is_left(self, each: Round) -> None:
        of, kept = self._finished[each.rollout.answers]["answers"], self._finished[each.data]
        if each.chooses:
            how = "agree with" if each.config.keep == "agreeing" else "are identical to those of"
            whose = "the teacher's " if each.config.agree_with == "teacher" else ""
            self._say(each, f"{kept['answers']:,} of {of:,} answers {how} {whose}full-step decoding and are kept")
        if not kept["answers"]:
            how = "agrees with" if each.config.keep == "agreeing" else "is identical to"
            raise WorkError(
                f"round {each.number}: none of {of:,} answers {how} the full-step answer; "
                "raise rollout.steps_per_block or set keep: all, and choose another out"
            )
        if not (each.config.keep_unfinished or kept["ended_by"].get("stop")):
            raise WorkError(
                f"round {each.number}: none of {kept['answers']:,} answers ended by a stop token; "
                "raise rollout.max_new_tokens or set keep_unfinished, and choose another out"
            )

    def _train(self, each: Round) -> None:
        recipe = each.recipe(self.recipe)
        mixed = recipe.data.mix_in_share if recipe.data is not None else 0
        beside = f", {mixed:.0%} of its examples from round 1" if mixed else ""
        self._say(each, f"the student starts from {each.start} and trains to step {recipe.optim.steps:,}{beside}")
        started = time.monotonic()
        steps = _run_training(recipe)
        release_memory()
        if self._is_main:
            self._finished.add(each.training, {"steps": steps, "seconds": time.monotonic() - started})

    def _judge(self, each: Round) -> None:
        """Write down what the round's student is worth, where that decides about something."""
        stop = self.recipe.stop_rounds
        if stop is None or each.score in self._finished:
            return
        started = time.monotonic()
        if each.judged is not None:
            self._roller.roll_out(each.judged, self._speaker(each))
            score = self._roller.agreement(each.judged)
        else:
            score = accuracy_of(self.out / each.training, of_best=each.config.student == "best")
        self._finished.add(each.score, {stop.by: score, "seconds": time.monotonic() - started})
        self._say(each, f"the student's {stop.by} is {score:.1%}")

    def _scores(self, last: Round) -> list[float]:
        """Of the rounds' students up to that of `last`; empty if none are judged."""
        stop = self.recipe.stop_rounds
        return [] if stop is None else [self._finished[each.score][stop.by] for each in self.rounds[: last.number]]

    def _is_enough(self, each: Round) -> bool:
        stop, scores = self.recipe.stop_rounds, self._scores(each)
        if stop is None or not is_enough(scores, stop.patience):
            return False
        if each is not self.rounds[-1]:
            self._say(each, f"nothing better since round {best_round(scores)}, and the patience is spent; the run ends")
        return True

    def _publish(self) -> None:
        if MODEL in self._finished:
            return
        stop = self.recipe.stop_rounds
        last = [each for each in self.rounds if each.training in self._finished][-1]
        left = last if stop is None or stop.publish == "last" else self.rounds[best_round(self._scores(last)) - 1]
        _copy(self.out / left.student, self.out / MODEL)
        self._finished.add(MODEL, {"from": left.student})
        if stop is not None:
            self._say(last, f"{MODEL} is the student of round {left.number}")

    def _speaker(self, each: Round) -> Say:
        return lambda what: self._say(each, what)

    def _say(self, each: Round, what: str) -> None:
        if self._is_main:
            tell(f"round {each.number} of {len(self.rounds)}: {what}")

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
    if trainer.interrupted:
        raise KeyboardInterrupt(f"stopped after the last step of {recipe.out}; --resume goes on")
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

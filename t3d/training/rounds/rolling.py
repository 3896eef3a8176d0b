"""Models answer: the rollouts of a run of rounds, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import compress
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from t3d import trajectories
from t3d.config import Recipe
from t3d.engine import Engine
from t3d.evaluation import label_of
from t3d.models import load_model
from t3d.training.device import release_memory
from t3d.training.precision import compute_dtype
from t3d.training.rounds.completion import complete, whole_answers
from t3d.training.rounds.data import agreement, figures_of, grader_of, identity
from t3d.training.rounds.plan import PlannedRollout, teacher_of
from t3d.training.rounds.record import RoundsFile
from t3d.types import Decoding, Trajectory

Say = Callable[[str], None]
"""Tells people what is done."""


class Roller:
    """Has models answer, and writes down what is finished of it.

    Args:
        recipe: of the whole run, its precision filled in.
        tokenizer: of all its models.
        finished: its record.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, finished: RoundsFile) -> None:
        self._recipe, self._tokenizer, self._finished = recipe, tokenizer, finished
        self._out, self._teacher = Path(recipe.out), teacher_of(recipe)

    def roll_out(self, planned: PlannedRollout, say: Say) -> None:
        """Decode what is not decoded yet."""
        for model in dict.fromkeys(model for model, _ in planned.decodings.values()):
            todo = {
                folder: decoding
                for folder, (by, decoding) in planned.decodings.items()
                if by == model and folder not in self._finished
            }
            if todo:
                self._decode(planned, model, todo, say)
                release_memory()
        if planned.answers not in self._finished:
            self._complete(planned, say)
            release_memory()

    def keep(self, planned: PlannedRollout, folder: str, exactly: bool) -> None:
        """Write the answers that the full-step ones bear out into a folder, if that was not done yet.

        Args:
            planned: rolled out.
            folder: seen from the run's.
            exactly: keep what is identical, not all that agrees.
        """
        if folder in self._finished:
            return
        started = time.monotonic()
        rows = self._rows(planned.answers)
        verdicts = self._verdicts(planned, rows, exactly)
        meta = trajectories.read_meta(self._out / planned.answers)
        trajectories.write(self._out / folder, compress(rows, verdicts), meta, resume=True)
        figures = {**figures_of(self._out / folder), "share": sum(verdicts) / len(verdicts)}
        self._finished.add(folder, {**figures, "seconds": time.monotonic() - started})

    def agreement(self, planned: PlannedRollout) -> float:
        """The share of answers that agree with the full-step ones."""
        verdicts = self._verdicts(planned, self._rows(planned.answers), exactly=False)
        return sum(verdicts) / len(verdicts)

    def _verdicts(self, planned: PlannedRollout, rows: list[Trajectory], exactly: bool) -> list[bool]:
        full_step = self._rows(planned.compared)
        if exactly:
            return identity(rows, full_step)
        if planned.completion is not None:
            rows = whole_answers(rows, self._rows(planned.decoded), self._tokenizer)
        with grader_of(planned.config) or nullcontext() as grader:
            return agreement(rows, full_step, grader)

    def _rows(self, folder: str) -> list[Trajectory]:
        return list(trajectories.read(self._out / folder))

    def _decode(self, planned: PlannedRollout, model: str, todo: dict[str, Decoding], say: Say) -> None:
        engine, samples = self._engine(planned, model), planned.config.samples
        who = "teacher" if model == self._teacher else "student"
        for folder, decoding in todo.items():
            pace = label_of(decoding).replace("/", " per ") + (", to compare" if folder != planned.decoded else "")
            say(f"the {who} rolls out {len(planned.questions.prompts) * samples:,} answers at {pace}")
            started = time.monotonic()
            trajectories.rollout(
                engine,
                planned.questions.prompts,
                decoding,
                self._out / folder,
                model_name=model,
                form=planned.questions.form,
                samples=samples,
                resume=True,
            )
            self._add(folder, started)

    def _complete(self, planned: PlannedRollout, say: Say) -> None:
        assert planned.completion is not None
        begun = self._rows(planned.decoded)
        say(f"the teacher completes {len(begun):,} answers, each from the end of one of its blocks")
        started = time.monotonic()
        complete(
            self._engine(planned, self._teacher),
            begun,
            planned.completion,
            self._out / planned.answers,
            model_name=self._teacher,
            form=planned.questions.form,
        )
        self._add(planned.answers, started)

    def _add(self, folder: str, started: float) -> None:
        self._finished.add(folder, {**figures_of(self._out / folder), "seconds": time.monotonic() - started})

    def _engine(self, planned: PlannedRollout, model: str) -> Engine:
        config = planned.config
        return Engine(
            load_model(model, dtype=config.dtype or compute_dtype(self._recipe), device=self._recipe.device),
            self._tokenizer,
            max_batch_size=config.batch_size,
            backend=config.backend,
            memory_gib=config.memory_gib,
        )

"""What a recipe's rounds come to: who rolls out how, what is kept, who learns; checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from t3d.config import Recipe, RolloutConfig, RoundConfig
from t3d.errors import RequestError
from t3d.models import BlockDiffusionModel
from t3d.objectives import build_objective
from t3d.tasks.prompts import Questions
from t3d.training.rounds.data import check_prompts, decoding_of, full_step_of, grader_of, questions_of
from t3d.training.run.watching import Watcher
from t3d.training.student import make_student, weightless_model
from t3d.types import Decoding

TEACHER, MODEL, BEST = "teacher", "model", "best"


@dataclass(frozen=True, slots=True)
class PlannedRollout:
    """Answers of one model, planned.

    Attributes:
        config: its part of the recipe.
        questions: what is answered.
        few_step: how; resolved.
        full_step: how the answers to compare with are decoded; None if nothing is compared, or if the answers are
            their own comparison.
        completion: how the teacher goes on from where the answers are cut; None leaves them whole.
        model: that answers.
        folder: that its folders are in, seen from the run's.
        compared_with: another model, whose answers it is that are compared with; None is `model`.
    """

    config: RolloutConfig
    questions: Questions
    few_step: Decoding
    full_step: Decoding | None
    completion: Decoding | None
    model: str
    folder: str
    compared_with: str | None = None

    @property
    def decoded(self) -> str:
        """The folder of the answers."""
        return f"{self.folder}/trajectories"

    @property
    def compared(self) -> str:
        """The folder of the full-step answers."""
        return self.decoded if self.full_step is None else f"{self.folder}/full-step"

    @property
    def answers(self) -> str:
        """The folder of what the rollout comes to: the answers, or their completions."""
        return self.decoded if self.completion is None else f"{self.folder}/completed"

    @property
    def decodings(self) -> dict[str, tuple[str, Decoding]]:
        """Which model decodes, and how, by the folder that it goes to."""
        own = {self.decoded: (self.model, self.few_step)}
        if self.full_step is None:
            return own
        return {**own, self.compared: (self.compared_with or self.model, self.full_step)}

    @property
    def can_disagree(self) -> bool:
        """Whether there is anything that may differ from the full-step answers."""
        return self.answers != self.compared


@dataclass(frozen=True, slots=True)
class Round:
    """One round, planned.

    Attributes:
        number: from 1.
        config: its part of the recipe.
        rollout: what it learns from, before some of it is kept.
        start: the model that the student starts from.
        before: the round before; None in the first.
        judged: the answers of its student that are looked at, where agreement says when to stop.
    """

    number: int
    config: RoundConfig
    rollout: PlannedRollout
    start: str
    before: Round | None
    judged: PlannedRollout | None = None

    def folder(self, name: str) -> str:
        """One of the round's folders, seen from the run's."""
        return f"round-{self.number}/{name}"

    @property
    def first(self) -> Round:
        """Round 1."""
        return self if self.before is None else self.before.first

    @property
    def chooses(self) -> bool:
        """Whether only some answers are kept, those that the full-step ones bear out."""
        return self.config.keep != "all" and self.rollout.can_disagree

    @property
    def data(self) -> str:
        """The folder of the answers that the training learns from."""
        return self.folder("kept") if self.chooses else self.rollout.answers

    @property
    def training(self) -> str:
        """The folder of the training."""
        return self.folder("training")

    @property
    def student(self) -> str:
        """The folder of the student that the round leaves."""
        return f"{self.training}/{BEST if self.config.student == 'best' else MODEL}"

    @property
    def score(self) -> str:
        """What the round's student is judged to be worth: a part of the run, and the folder of what it takes."""
        return self.folder("judged")

    def recipe(self, whole: Recipe) -> Recipe:
        """The recipe of the training; `whole` is the recipe of all rounds."""
        out = Path(whole.out)
        return whole.of_round(
            self.number,
            source=self.start,
            trajectories=str(out / self.data),
            out=str(out / self.training),
            before=str(out / self.before.training) if self.before is not None else None,
            first_rows=str(out / self.first.data),
        )


def plan_rounds(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Round]:
    """All rounds of a recipe, whose precision is filled in.

    Raises:
        RequestError: a round, named by its place in the recipe, cannot roll out or train as it stands.
    """
    planner = _Planner(recipe, tokenizer)
    judged = planner.judged()
    rounds: list[Round] = []
    student = teacher_of(recipe)
    for number, chosen in enumerate(recipe.rounds, start=1):
        planned = Round(number, chosen, planner.rollout(number, student), student, rounds[-1] if rounds else None)
        student = str(Path(recipe.out) / planned.student)
        if judged is not None:
            planned = replace(planned, judged=replace(judged, model=student, folder=planned.score))
        _check_training(planned.recipe(recipe), weightless_model(recipe, tokenizer), tokenizer)
        rounds.append(planned)
    return rounds


def teacher_of(recipe: Recipe) -> str:
    """The model of round 1: the recipe's, or a folder in `out` where the recipe gives shapes in place of one."""
    return recipe.model.source or str(Path(recipe.out) / TEACHER)


class _Planner:
    """Plans a recipe's rollouts, all by models of the same shapes."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer
        self._config = weightless_model(recipe, tokenizer).config

    def rollout(self, number: int, student: str) -> PlannedRollout:
        """That of a round."""
        chosen = self._recipe.rounds[number - 1]
        config = chosen.rollout
        model = teacher_of(self._recipe) if config.by == "teacher" else student
        with _naming(f"rounds.{number - 1}.rollout"):
            seed = self._recipe.seed_of_round(number)
            planned = self._planned(config, seed, model, f"round-{number}", chosen.keep)
            if chosen.agree_with == "teacher":
                planned = self._compared_with_teacher(planned)
            _check_grader(planned, chosen.keep)
            return planned

    def _compared_with_teacher(self, planned: PlannedRollout) -> PlannedRollout:
        """The answers beside the teacher's, which decodes in blocks of its own size; in others it is another."""
        size = self._config.block_size
        full_step = replace(planned.full_step or planned.few_step, block_size=size, steps_per_block=size)
        teacher = teacher_of(self._recipe)
        if planned.model == teacher and planned.few_step == full_step:
            return planned
        return replace(planned, full_step=full_step, compared_with=teacher)

    def judged(self) -> PlannedRollout | None:
        """That by which students are judged, of no model yet."""
        stop = self._recipe.stop_rounds
        if stop is None or stop.rollout is None:
            return None
        with _naming("stop_rounds.rollout"):
            planned = self._planned(stop.rollout, self._recipe.seed, "", "", "agreeing")
            if planned.full_step is None:
                raise RequestError("full-step answers agree with themselves; set steps_per_block to fewer")
            _check_grader(planned, "agreeing")
        return planned

    def _planned(self, config: RolloutConfig, default_seed: int, model: str, folder: str, keep: str) -> PlannedRollout:
        seed = default_seed if config.seed is None else config.seed
        few_step = decoding_of(config, self._config.block_size, seed)
        questions = questions_of(config, self._recipe.prompt, self._tokenizer, seed)
        check_prompts(questions.prompts, few_step, self._tokenizer, self._config)
        full_step = full_step_of(few_step)
        completion = (full_step or few_step) if config.completed_by is not None else None
        compared = full_step if keep != "all" else None
        return PlannedRollout(config, questions, few_step, compared, completion, model, folder)


def _check_grader(planned: PlannedRollout, keep: str) -> None:
    """Refuse now what a comparison of final answers would refuse after the rollout."""
    if keep == "agreeing" and planned.can_disagree and (grader := grader_of(planned.config)) is not None:
        grader.close()  # it can be had, and that is all for now


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Refusals say which part of the recipe they are about."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{place}: {error}") from error


def _check_training(recipe: Recipe, model: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse now what the trainer would refuse after the rollout; `model` has no weights."""
    build_objective(recipe.objective.name, **recipe.objective.options)
    student = make_student(lambda _: model, recipe, torch.device("meta"))
    if recipe.evaluation is not None:
        Watcher(recipe.evaluation, recipe, student, tokenizer, Path(recipe.out) / "best")

"""What a recipe's rounds come to: who rolls out how, what is kept, who learns; checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from t3d.config import Recipe, RoundConfig
from t3d.errors import RequestError
from t3d.models import FAMILIES, SDARConfig, SDARForCausalLM, load_config, random_model
from t3d.objectives import build_objective
from t3d.tasks.prompts import Questions
from t3d.training.rounds.data import check_prompts, decoding_of, full_step_of, grader_of, questions_of
from t3d.training.run.watching import Watcher
from t3d.training.student import make_student
from t3d.types import Decoding

TEACHER, MODEL = "teacher", "model"


@dataclass(frozen=True, slots=True)
class Round:
    """One round, planned.

    Attributes:
        number: from 1.
        config: its part of the recipe.
        questions: what is answered.
        few_step: how; resolved.
        full_step: how the answers to agree with are decoded; None keeps all answers.
        roller: the model that rolls out.
        start: the model that the student starts from.
    """

    number: int
    config: RoundConfig
    questions: Questions
    few_step: Decoding
    full_step: Decoding | None
    roller: str
    start: str

    def folder(self, name: str) -> str:
        """One of the round's folders, seen from the run's."""
        return f"round-{self.number}/{name}"

    @property
    def rollouts(self) -> dict[str, Decoding]:
        """What is decoded, by the folder that it goes to."""
        both = {self.folder("trajectories"): self.few_step, self.folder("full-step"): self.full_step}
        return {folder: decoding for folder, decoding in both.items() if decoding is not None}

    @property
    def data(self) -> str:
        """The folder of the answers that the training learns from."""
        return self.folder("trajectories" if self.full_step is None else "kept")

    @property
    def training(self) -> str:
        """The folder of the training."""
        return self.folder("training")

    def recipe(self, whole: Recipe) -> Recipe:
        """The recipe of the training; `whole` is the recipe of all rounds."""
        out = Path(whole.out)
        return whole.of_round(
            self.number, source=self.start, trajectories=str(out / self.data), out=str(out / self.training)
        )


def plan_rounds(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Round]:
    """All rounds of a recipe, whose precision is filled in.

    Raises:
        RequestError: a round, named by its place in the recipe, cannot roll out or train as it stands.
    """
    out, config = Path(recipe.out), _weightless_model(recipe, tokenizer).config
    teacher = student = teacher_of(recipe)
    rounds = []
    for number, chosen in enumerate(recipe.rounds, start=1):
        roller = teacher if chosen.rollout.by == "teacher" else student
        try:
            planned = _plan(recipe, number, roller, student, tokenizer, config)
        except RequestError as error:
            raise RequestError(f"rounds.{number - 1}.rollout: {error}") from error
        _check_training(planned.recipe(recipe), _weightless_model(recipe, tokenizer), tokenizer)
        rounds.append(planned)
        student = str(out / planned.training / MODEL)
    return rounds


def teacher_of(recipe: Recipe) -> str:
    """The model of round 1: the recipe's, or a folder in `out` where the recipe gives shapes in place of one."""
    return recipe.model.source or str(Path(recipe.out) / TEACHER)


def _plan(
    recipe: Recipe, number: int, roller: str, start: str, tokenizer: PreTrainedTokenizerBase, config: SDARConfig
) -> Round:
    chosen = recipe.rounds[number - 1]
    rollout = chosen.rollout
    seed = recipe.seed_of_round(number) if rollout.seed is None else rollout.seed
    few_step = decoding_of(rollout, config.block_size, seed)
    questions = questions_of(rollout, recipe.prompt, tokenizer, seed)
    check_prompts(questions.prompts, few_step, tokenizer, config)
    full_step = full_step_of(few_step) if chosen.keep == "agreeing" else None
    if full_step is not None and (grader := grader_of(rollout)) is not None:
        grader.close()  # it can be had, and that is all for now
    return Round(number, chosen, questions, few_step, full_step, roller, start)


def _check_training(recipe: Recipe, model: SDARForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse now what the trainer would refuse after the rollout; `model` has no weights."""
    build_objective(recipe.objective.name, **recipe.objective.options)
    student = make_student(lambda _: model, recipe, torch.device("meta"))
    if recipe.evaluation is not None:
        Watcher(recipe.evaluation, recipe, student, tokenizer, Path(recipe.out) / "best")


def _weightless_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> SDARForCausalLM:
    """The shapes of every model of the run: training changes weights alone."""
    with torch.device("meta"):
        if recipe.model.init is not None:
            return random_model(recipe.model.init, tokenizer)
        config = load_config(recipe.model.source or "")
        _, model_class = FAMILIES[config.model_type]
        return model_class(config)

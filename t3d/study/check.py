"""What can be refused before anything runs is refused here, in one line that names the method."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from t3d.config import DataConfig, Recipe, RoundConfig
from t3d.config.study import StudyConfig
from t3d.errors import RequestError
from t3d.models import load_config, load_tokenizer
from t3d.study.cells import Cell, recipe_of, rollout_recipe
from t3d.study.measuring import benchmark_of, settings_of
from t3d.tasks import get_task
from t3d.training.requirements import check_training
from t3d.training.rounds.plan import plan_rounds
from t3d.training.run.tracking import check_trackers

FEW = 4
"""Prompts that are looked at where a study rolls out thousands."""


def check_study(study: StudyConfig) -> None:
    """Refuse a study that cannot be done as it stands.

    Raises:
        RequestError: no such teacher, benchmark or setting, or a method whose recipe cannot be trained.
    """
    tokenizer, block_size = load_tokenizer(study.teacher), load_config(study.teacher).block_size
    _check_measuring(study, block_size)
    _check_recipe(rollout_recipe(study, study.seeds[0]), study, tokenizer)
    for name in study.variants:
        recipe = recipe_of(study, Cell(name, study.learning_rates[0], study.seeds[0]))
        try:
            _check_recipe(recipe, study, tokenizer)
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from error


def _check_measuring(study: StudyConfig, block_size: int) -> None:
    shown = benchmark_of(study.test).split
    if study.tune.split == shown and len(study.learning_rates) > 1:
        raise RequestError(
            f"tune.split {shown}: is what tables show; tune on other problems, or give one learning rate"
        )
    for group, split, numbers, thresholds in (
        ("tune", study.tune.split, study.tune.tokens_per_step, ()),
        ("test", None, study.test.tokens_per_step, study.test.thresholds),
    ):
        try:
            settings_of(study.test, numbers, thresholds, block_size)
            benchmark = benchmark_of(study.test, split)
            benchmark.problems(1)
            benchmark.task.grader().close()
        except RequestError as error:
            raise RequestError(f"{group}: {error}") from error


def _check_recipe(recipe: Recipe, study: StudyConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """As a recipe of rounds is checked: one without learns from a rollout too, that of the study."""
    check_training(recipe)
    check_trackers(recipe.tracking)
    if recipe.data is not None and recipe.data.task is not None:
        _check_worked_answers(recipe.data, study)
    rounds = recipe.rounds or (RoundConfig(rollout=study.rollout),)
    few = {"data": None, "rounds": tuple(map(_with_few_prompts, rounds)), "precision": recipe.precision or "fp32"}
    plan_rounds(recipe.model_copy(update=few), tokenizer)


def _check_worked_answers(data: DataConfig, study: StudyConfig) -> None:
    """They must be there; and where the rollout draws its problems, the first ones would be others."""
    assert data.task is not None
    task, rollout = get_task(data.task, data.data), study.rollout
    task.problems(data.split, FEW, data.seed)
    if data.task == rollout.task and not task.is_endless and rollout.count is not None and rollout.shuffle:
        raise RequestError(
            f"data.task {data.task}: its worked answers are to the first problems, and rollout draws others; "
            "set rollout.shuffle: false, or leave rollout.count out"
        )


def _with_few_prompts(each: RoundConfig) -> RoundConfig:
    rollout = each.rollout
    if rollout.count is None:  # all of a finite task
        return each
    return each.model_copy(update={"rollout": rollout.model_copy(update={"count": min(rollout.count, FEW)})})

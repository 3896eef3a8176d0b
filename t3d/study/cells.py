"""What a study consists of: its tasks, and the recipe and folder of each cell. Pure; nothing is read or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.config import Recipe, make_recipe
from t3d.config.study import EQUAL_TIME, TEACHER, StudyConfig, folder_name
from t3d.errors import RequestError
from t3d.study.graph import Task
from t3d.study.rows import Kind, Row

RUN = "run"
"""A cell's run folder."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A method or ablation with a learning rate and a seed.

    Attributes:
        variant: the method or ablation.
        lr: learning rate.
        seed: of the study.
        steps: in place of its recipe's, where it is trained for as long as another.
    """

    variant: str
    lr: float
    seed: int
    steps: int | None = None

    def folder(self, study: StudyConfig) -> Path:
        """Where all of it goes."""
        rate = f"lr-{self.lr:g}" + (f"-equal-time-{self.steps}-steps" if self.steps is not None else "")
        return Path(study.out) / "cells" / folder_name(self.variant) / rate / f"seed-{self.seed}"

    def draft(self, study: StudyConfig) -> Row:
        """Its row before anything is done."""
        kind: Kind = "method" if self.variant in study.methods else "ablation"
        name = self.variant
        if self.steps is not None:
            kind, name = "equal time", EQUAL_TIME.format(self.variant)
        recipe = recipe_of(study, self).model_dump(mode="json", exclude={"out"})
        return Row(name=name, variant=self.variant, kind=kind, lr=self.lr, seed=self.seed, recipe=recipe)


def recipe_of(study: StudyConfig, cell: Cell) -> Recipe:
    """The recipe of a cell's training.

    Raises:
        RequestError: the method's fields make no recipe.
    """
    name = f"{'method' if cell.variant in study.methods else 'ablation'} {cell.variant}"
    fields = study.fields_of(cell.variant)
    for group in ("model", "optim", "tracking"):
        if not isinstance(fields.get(group, {}), dict):
            raise RequestError(f"{name}: {group}: must be a group of keys, not a single value")
    optim = {**fields.get("optim", {}), "lr": cell.lr}
    if cell.steps is not None:
        optim["steps"] = cell.steps
    fields |= {
        "model": {**fields.get("model", {}), "source": study.teacher},
        "optim": optim,
        "tracking": {"to": [], **fields.get("tracking", {})},
        "seed": cell.seed,
        "out": str(cell.folder(study) / RUN),
    }
    if not fields.get("rounds"):
        fields["data"] = _data_of(study, cell.seed, fields.get("data"))
    return make_recipe(fields, name=name)


def is_of_recipe(row: Row, recipe: Recipe) -> bool:
    """Whether a stored row's training is that of a recipe; keys that the row lacks had their defaults."""
    return make_recipe({**(row.recipe or {}), "out": recipe.out}) == recipe


def uses_rollouts(study: StudyConfig, variant: str) -> bool:
    """Whether a method or ablation learns from the shared rollouts."""
    fields = study.fields_of(variant)
    return not fields.get("rounds") and not {"task", "trajectories"} & (fields.get("data") or {}).keys()


def rollouts_folder(study: StudyConfig, seed: int) -> Path:
    """The shared rollouts of a seed."""
    return Path(study.out) / "rollouts" / f"seed-{seed}"


def rollout_recipe(study: StudyConfig, seed: int) -> Recipe:
    """A recipe whose only round's rollout is that of a seed: the first round of any recipe with that seed.

    Raises:
        RequestError: there is no such rollout.
    """
    fields: dict[str, Any] = {
        key: study.recipe[key] for key in ("model", "prompt", "precision", "device") if key in study.recipe
    }
    if not isinstance(fields.get("model", {}), dict):
        raise RequestError("recipe: model: must be a group of keys, not a single value")
    fields |= {"model": {**fields.get("model", {}), "source": study.teacher}, "seed": seed, "out": study.out}
    fields |= {"rounds": [{"rollout": study.rollout}]}
    fields |= {"objective": {"name": "sft"}, "optim": {"steps": 1}}  # a recipe has these; nothing is trained
    return make_recipe(fields, name="rollout")


def tasks_of(study: StudyConfig) -> list[Task]:
    """All tasks: what tables need most comes first."""
    first = study.seeds[0]
    tasks = [Task(f"rollouts/seed-{seed}", "rollouts", seed=seed) for seed in study.seeds if _needs_rollouts(study)]
    tasks += [
        Task(tune_key(name, lr), "tune", name, first, lr, _rollout_key(study, name, first))
        for name in sorted(study.methods, key=study.has_rounds, reverse=True)  # the longest ones must not begin last
        for lr in study.learning_rates
    ]
    tasks.append(Task(TEACHER, "teacher"))
    tasks += [_test(study, name, name, seed) for seed in study.seeds for name in study.methods]
    tasks += _equal_time(study)
    tasks += [
        _test(study, name, each.of, seed)
        for name, each in study.ablations.items()
        for seed in study.seeds[: study.ablation_seeds]
    ]
    return tasks


def tune_key(method: str, lr: float) -> str:
    """The task that tries a learning rate."""
    return f"tune/{method}/lr-{lr:g}"


def test_key(variant: str, seed: int) -> str:
    """The task that tests a method or ablation."""
    return f"test/{variant}/seed-{seed}"


def _test(study: StudyConfig, variant: str, method: str, seed: int) -> Task:
    tried = tuple(tune_key(method, lr) for lr in study.learning_rates)
    return Task(test_key(variant, seed), "test", variant, seed, needs=(*tried, *_rollout_key(study, variant, seed)))


def _equal_time(study: StudyConfig) -> Iterator[Task]:
    for name in study.equal_time_methods:
        assert study.equal_time is not None
        timed = tuple(test_key(each, seed) for each in (name, study.equal_time.to) for seed in study.seeds)
        for seed in study.seeds:
            yield Task(f"equal-time/{name}/seed-{seed}", "equal time", name, seed, needs=timed)


def _rollout_key(study: StudyConfig, variant: str, seed: int) -> tuple[str, ...]:
    return (f"rollouts/seed-{seed}",) if uses_rollouts(study, variant) else ()


def _needs_rollouts(study: StudyConfig) -> bool:
    return any(uses_rollouts(study, name) for name in study.variants)


def _data_of(study: StudyConfig, seed: int, given: Any) -> Any:
    """What is given, over the shared rollouts; or over the worked answers to the problems that were rolled out."""
    if given is not None and not isinstance(given, dict):
        return given  # to be refused
    given, rollout = given or {}, study.rollout
    if "task" not in given:
        return {"trajectories": str(rollouts_folder(study, seed)), **given}
    origin: dict[str, Any] = {"count": rollout.count, "seed": seed + 1 if rollout.seed is None else rollout.seed}
    if given["task"] == rollout.task:
        origin |= {"data": rollout.data, "split": rollout.split}
    return {**origin, **given}

"""A recipe and a cluster, examined: every check of training that needs no GPU and no weights, and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from t3d.bench.lengths import Lengths
from t3d.config import Recipe
from t3d.corruption import TrainingRow
from t3d.doctor.advice import changes_that_fit
from t3d.doctor.gpus import Cluster
from t3d.doctor.rollouts import Rollout, lengths_of, rollouts_of
from t3d.doctor.subject import Subject, find_subject, student_on_paper
from t3d.doctor.training import Training, not_measured, plan_training, resolved
from t3d.doctor.workload import mean_lengths, rows_of
from t3d.objectives import build_objective
from t3d.training.data import load_rows
from t3d.training.rounds.plan import PlannedRollout, plan_rounds
from t3d.training.run.folder import RECIPE_FILE, RunFolder
from t3d.training.run.tracking import check_trackers
from t3d.training.run.watching import Watcher

MADE_UP = "real"
"""Lengths of rounds whose prompts cannot be read here."""


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found.

    Attributes:
        subject, cluster: what and where.
        trainings: one, or each round's.
        rollouts: of rounds.
        lengths: where rows have their lengths from.
        mean_prompt, mean_response: tokens.
        unchecked: what training will check and could not be checked here.
        unlike: what is arithmetic alone, without a measurement of its like.
        changes: of which one makes it fit, where it does not.
        price: of a GPU and hour, in whatever currency; None was not given.
    """

    subject: Subject
    cluster: Cluster
    trainings: Sequence[Training]
    rollouts: Sequence[Rollout]
    lengths: str
    mean_prompt: float
    mean_response: float
    unchecked: Sequence[str]
    unlike: Sequence[str]
    changes: Sequence[str] = field(default_factory=tuple)
    price: float | None = None

    @property
    def fits(self) -> bool:
        """Whether every training does."""
        return all(training.memory.fits for training in self.trainings)

    @property
    def largest(self) -> Training:
        """The training that takes the most memory."""
        return max(self.trainings, key=lambda training: training.memory.total)

    @property
    def seconds(self) -> float | None:
        """Of all that could be worked out; None where a part could not."""
        parts = [training.seconds for training in self.trainings] + [each.seconds for each in self.rollouts]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)

    @property
    def gpu_hours(self) -> float | None:
        """All GPUs are paid for while one of them rolls out."""
        return None if self.seconds is None else self.seconds / 3600 * self.cluster.num_gpus

    @property
    def cost(self) -> float | None:
        """In the price's currency."""
        return None if self.gpu_hours is None or self.price is None else self.gpu_hours * self.price


def examine(recipe: Recipe, cluster: Cluster, lengths: str | None = None, price: float | None = None) -> Examination:
    """Examine a recipe.

    Args:
        recipe: as it was loaded.
        cluster: that it is to run on.
        lengths: a name in `t3d.bench.LENGTHS`, in place of the recipe's data, which then need not be there.
        price: of a GPU and hour.

    Raises:
        RequestError: what training would refuse, in its words; or a model of which nothing is here.
    """
    build_objective(recipe.objective.name, **recipe.objective.options)
    check_trackers(recipe.tracking)
    asked, subject = find_subject(recipe)
    complete = resolved(asked, subject, cluster)
    reads = lengths is None and subject.tokenizer is not None
    planned = _rounds(complete, subject) if recipe.rounds and reads else None
    rows, source = _rows(asked, subject, lengths, planned)
    trainings = [plan_training(each, subject, rows, cluster, name) for name, each in _trainings(asked)]
    if not recipe.rounds and reads:
        _check_evaluation(complete, subject)
    # the recipe as it was asked for: a folder is compared with that
    RunFolder(recipe.model_copy(update={"precision": complete.precision}), resume=_has_run(recipe))
    prompt, response = mean_lengths(rows)
    known = None if planned is not None and lengths is None else response
    rollouts = rollouts_of(asked, planned, known, subject, cluster.gpu)
    largest = max(range(len(trainings)), key=lambda index: trainings[index].memory.total)
    changes: list[str] = []
    if not trainings[largest].memory.fits:
        changes = changes_that_fit(trainings[largest], _trainings(asked)[largest][1], subject, rows)
    unlike = list(dict.fromkeys(what for each in trainings for what in not_measured(each, subject.config)))
    return Examination(
        subject=subject,
        cluster=cluster,
        trainings=trainings,
        rollouts=rollouts,
        lengths=source,
        mean_prompt=prompt,
        mean_response=response,
        unchecked=_unchecked(recipe, reads),
        unlike=unlike,
        changes=changes,
        price=price,
    )


def _trainings(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """The recipe itself, or that of each round; rounds start from models of the same shapes."""
    if not recipe.rounds:
        return [("training", recipe)]
    found = []
    for number in range(1, len(recipe.rounds) + 1):
        each = recipe.of_round(number, source=".", trajectories=".", out=str(Path(recipe.out) / f"round-{number}"))
        found.append((f"round {number}", each.model_copy(update={"model": recipe.model})))
    return found


def _rounds(recipe: Recipe, subject: Subject) -> list[PlannedRollout]:
    """Planned as a run plans them, with all its checks."""
    assert subject.tokenizer is not None
    return [each.rollout for each in plan_rounds(recipe, subject.tokenizer)]


def _rows(
    recipe: Recipe, subject: Subject, lengths: str | None, planned: Sequence[PlannedRollout] | None
) -> tuple[list[TrainingRow], str]:
    """Rows like those of a step, and where they have their lengths from."""
    if lengths is not None:
        return rows_of(lengths, recipe, subject.config), f"made up: {lengths}"
    if planned is not None:
        found: Lengths = lengths_of(planned[0], subject)
        return rows_of(found, recipe, subject.config), "prompts of round 1, answers of half the longest"
    if recipe.data is not None and subject.tokenizer is not None:
        rows = load_rows(recipe.data, subject.tokenizer, subject.config, recipe.prompt)
        return rows, recipe.data.trajectories or f"task {recipe.data.task}"
    source = f"made up: {MADE_UP}, since a shape has no tokenizer to read data by"
    return rows_of(MADE_UP, recipe, subject.config), source


def _check_evaluation(recipe: Recipe, subject: Subject) -> None:
    if recipe.evaluation is not None and subject.tokenizer is not None:
        student = student_on_paper(recipe, subject.config)
        folder = Path(recipe.out) / "best"
        Watcher(recipe.evaluation, recipe, student, subject.tokenizer, folder, torch.device("meta"))


def _has_run(recipe: Recipe) -> bool:
    """Whether `out` holds a run: this recipe's may go on, another's is refused."""
    return (Path(recipe.out) / RECIPE_FILE).exists()


def _unchecked(recipe: Recipe, reads: bool) -> list[str]:
    left = ["weights and checkpoints"]
    if not reads:
        left.append("rollouts' prompts" if recipe.rounds else "data")
    if not reads and recipe.evaluation is not None:
        left.append("evaluation's problems")
    if recipe.optim.moments_from is not None:
        left.append("optim.moments_from")
    return left

"""What a study has found so far and what follows: chosen learning rates, steps at equal time, the next jobs."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from t3d.config import PromptConfig, Recipe
from t3d.config.study import EQUAL_TIME, TEACHER, StudyConfig
from t3d.errors import RequestError
from t3d.study.cells import Cell, is_of_recipe, recipe_of, rollout_recipe, rollouts_folder, uses_rollouts
from t3d.study.graph import Task
from t3d.study.jobs import CellJob, RolloutJob
from t3d.study.rows import CELL_FILE, Kind, Row, Training, best_validated, read_row


class Impossible(Exception):
    """A task cannot be done, since those that it needs failed; says why in one line."""


class State:
    """The rows of a study.

    Args:
        study: whose folder may hold finished ones.
    """

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._rows: dict[str, Row] = {}
        self._rollout_errors: dict[int, str] = {}

    @property
    def rows(self) -> list[Row]:
        """Of finished and failed cells: in the order of the study's methods, rates and seeds."""
        names = [TEACHER, *self._study.variants]
        return sorted(
            self._rows.values(),
            key=lambda row: (names.index(row.variant), row.kind, row.lr or 0.0, row.seed or 0),
        )

    def job_of(self, task: Task) -> RolloutJob | CellJob | None:
        """What is to be done for a task that may begin; None if it is done.

        Raises:
            Impossible: what it needs failed.
            RequestError: the folder holds something else in its place.
        """
        if task.kind == "rollouts":
            return self._rollout_job(task.seed)
        if task.kind == "teacher":
            return self._teacher_job()
        return self._cell_job(task)

    def end(self, task: Task, error: str | None) -> None:
        """Take in what a task found, or why it failed."""
        if task.kind == "rollouts":
            if error is not None:
                self._rollout_errors[task.seed] = error
            return
        if error is None:
            folder = self._folder(task)
            row = read_row(folder / CELL_FILE)
            assert row is not None, f"{task.key} ended without a row"
            self._rows[str(folder)] = row
        else:
            self._rows[task.key] = self._failed(task, error)

    def chosen_lr(self, variant: str) -> float:
        """The learning rate of a method, or of an ablation's: best on the validation problems; of equals the lower.

        Raises:
            Impossible: none worked.
        """
        method = self._method_of(variant)
        tried = [self._rows.get(str(self._tuned(method, lr).folder(self._study))) for lr in self._study.learning_rates]
        best = best_validated(row for row in tried if row is not None)
        if best is None:
            tuned = [row for row in self._rows.values() if row.variant == method and row.lr is not None]
            reasons = [row.error for row in tuned if row.error is not None]
            raise Impossible(": ".join([f"no learning rate of {method} worked", *reasons[:1]]))
        assert best.lr is not None
        return best.lr

    def unchosen(self, method: str) -> list[Path]:
        """Folders of cells that were tried for a method and not chosen."""
        chosen = self.chosen_lr(method)
        return [self._tuned(method, lr).folder(self._study) for lr in self._study.learning_rates if lr != chosen]

    def _tuned(self, method: str, lr: float) -> Cell:
        return Cell(method, lr, self._study.seeds[0])

    def _method_of(self, variant: str) -> str:
        ablation = self._study.ablations.get(variant)
        return variant if ablation is None else ablation.of

    def _cell(self, task: Task) -> Cell:
        if task.kind == "tune":
            assert task.lr is not None
            return Cell(task.variant, task.lr, task.seed)
        steps = self._steps_at_equal_time(task.variant) if task.kind == "equal time" else None
        return Cell(task.variant, self.chosen_lr(task.variant), task.seed, steps)

    def _folder(self, task: Task) -> Path:
        return Path(self._study.out) / TEACHER if task.kind == "teacher" else self._cell(task).folder(self._study)

    def _rollout_job(self, seed: int) -> RolloutJob | None:
        folder = rollouts_folder(self._study, seed)
        if self._rollouts_record(seed).exists():
            return None
        return RolloutJob(
            recipe=rollout_recipe(self._study, seed), folder=str(folder), record=str(self._rollouts_record(seed))
        )

    def _rollouts_record(self, seed: int) -> Path:
        return rollouts_folder(self._study, seed).with_suffix(".json")

    def _teacher_job(self) -> CellJob | None:
        folder = Path(self._study.out) / TEACHER
        if read_row(folder / CELL_FILE) is not None:
            return None
        row = Row(name=TEACHER, variant=TEACHER, kind="teacher")
        prompt = rollout_recipe(self._study, self._study.seeds[0]).prompt
        return self._job(row, folder, prompt, is_tuned=False)

    def _cell_job(self, task: Task) -> CellJob | None:
        study, cell = self._study, self._cell(task)
        folder, row, recipe = cell.folder(study), cell.draft(study), recipe_of(study, cell)
        known = read_row(folder / CELL_FILE)
        if known is not None:
            if not is_of_recipe(known, recipe):
                raise RequestError(f"{folder}: holds a cell with another recipe; choose another out")
            if known.validation if task.kind == "tune" else known.settings:
                return None
            row = known
        rollouts = None
        if uses_rollouts(study, cell.variant):
            record = self._rollouts_record(cell.seed)
            if not record.exists():
                why = self._rollout_errors.get(cell.seed, "their record is gone")
                raise Impossible(f"the rollouts of seed {cell.seed} failed: {why}")
            rollouts = str(record)
        is_tuned = task.kind == "tune"
        return self._job(row, folder, recipe.prompt, is_tuned=is_tuned, recipe=recipe, rollouts=rollouts)

    def _job(
        self,
        row: Row,
        folder: Path,
        prompt: PromptConfig,
        *,
        is_tuned: bool,
        recipe: Recipe | None = None,
        rollouts: str | None = None,
    ) -> CellJob:
        study = self._study
        return CellJob(
            row=row,
            folder=str(folder),
            recipe=recipe,
            model=study.teacher,
            device=study.recipe.get("device"),
            rollouts=rollouts,
            prompt=prompt,
            tune=study.tune if is_tuned else None,
            test=study.test.model_copy(update={"thresholds": ()}) if row.kind == "ablation" else study.test,
            is_tested=not is_tuned,
            keeps_model=is_tuned or study.keep_models != "none",
        )

    def _steps_at_equal_time(self, method: str) -> int:
        """Optimizer steps that fit into the other method's time, at this one's pace; both averaged over seeds.

        Raises:
            Impossible: one of them failed, or rolling out alone takes as long.
        """
        assert self._study.equal_time is not None
        target = fmean(each.seconds for each in self._trainings(self._study.equal_time.to))
        own = self._trainings(method)
        left = target - fmean(each.rollout_seconds for each in own)
        steps = math.floor(left / fmean(each.seconds_per_step for each in own))
        if steps < 1:
            raise Impossible(f"its rollouts alone take as long as {self._study.equal_time.to}")
        return steps

    def _trainings(self, method: str) -> list[Training]:
        lr = self.chosen_lr(method)
        found = [self._rows.get(str(Cell(method, lr, seed).folder(self._study))) for seed in self._study.seeds]
        trainings = [row.training for row in found if row is not None and row.training is not None]
        if not trainings:
            raise Impossible(f"{method} failed with every seed")
        return trainings

    def _failed(self, task: Task, error: str) -> Row:
        if task.kind == "teacher":
            return Row(name=TEACHER, variant=TEACHER, kind="teacher", error=error)
        try:
            draft = self._cell(task).draft(self._study)
        except Impossible:  # its learning rate or its steps are not known
            name = EQUAL_TIME.format(task.variant) if task.kind == "equal time" else task.variant
            draft = Row(name=name, variant=task.variant, kind=self._kind(task), seed=task.seed)
        return draft.model_copy(update={"error": error})

    def _kind(self, task: Task) -> Kind:
        if task.kind == "equal time":
            return "equal time"
        return "method" if task.variant in self._study.methods else "ablation"

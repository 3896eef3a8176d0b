"""Evaluation while training: few-step accuracy on held-out problems, the best student so far, and when to stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from t3d.checksums import checked, damage_of_folder
from t3d.config import EvaluationConfig, Recipe
from t3d.engine import Engine
from t3d.errors import RequestError, WorkError
from t3d.evaluation import EvalResult, evaluate, get_benchmark, prepare, settings_to_try
from t3d.models import save_model
from t3d.progress import Reporter
from t3d.training.device import release_memory
from t3d.training.student import Student
from t3d.types import Decoding

BEST_FILE = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """The best student so far.

    Attributes:
        step: finished optimizer steps; 0 is the model that the run started from.
        tokens_per_step: the setting by which it is the best.
        accuracy: share of right answers there.
        metrics: of all settings, as in metrics.jsonl.
    """

    step: int
    tokens_per_step: int
    accuracy: float
    metrics: dict[str, float]


class Watcher:
    """Evaluates the student of one run and keeps the best one in `folder`.

    Args:
        evaluation: the recipe's.
        recipe: of the run.
        student: what will be trained, whose shapes decide about what can be decoded.
        tokenizer: of the model.
        folder: where the best student goes, and where that of an earlier part of the run is.
        device: that the engine runs on; None is the student's.

    Attributes:
        evaluated: finished steps at which this run was evaluated, in order; a checkpoint holds them.
        best: on disk; that of a part of the run which a kill cut off counts too.
        num_answers: of one evaluation.

    Raises:
        RequestError: no such benchmark or split, a setting in which its problems cannot be decoded, or nothing to run
            programs in where its answers are some.
    """

    def __init__(
        self,
        evaluation: EvaluationConfig,
        recipe: Recipe,
        student: Student,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        device: torch.device | None = None,
    ) -> None:
        self._config, self._recipe, self._tokenizer, self._folder = evaluation, recipe, tokenizer, folder
        self._device = device or student.model.device
        self.evaluated: list[int] = []
        try:
            self._benchmark = replace(get_benchmark(evaluation.benchmark, evaluation.data), split=evaluation.split)
            longest = evaluation.max_new_tokens or self._benchmark.task.max_new_tokens
            base = Decoding(block_size=recipe.corruption.block_size, max_new_tokens=longest)
            self._settings = settings_to_try(evaluation.tokens_per_step, (), base, student.model.config.block_size)
            self.num_answers = self._checked_answers(student) * len(self._settings)
        except RequestError as error:
            raise RequestError(f"evaluation: {error}") from error
        self.best = read_best(folder)

    def is_due(self, step: int) -> bool:
        """Whether the student is to be evaluated after `step` finished steps, and was not yet."""
        config = self._config
        due = config.at_start if step == 0 else step % config.every_steps == 0 or step == self._recipe.optim.steps
        return due and step not in self.evaluated

    @property
    def wants_to_stop(self) -> bool:
        """Whether the last `patience` evaluations found nothing better."""
        if not self._config.patience or self.best is None:
            return False
        return sum(step > self.best.step for step in self.evaluated) >= self._config.patience

    def evaluate(self, step: int, student: Student, reporter: Reporter) -> dict[str, float]:
        """Metrics of the student after `step` finished steps; if it is the best so far, it goes to the folder.

        Args:
            step: finished optimizer steps.
            student: as it is now, whole; it stays so.
            reporter: is told of finished answers; what it raises ends the evaluation.

        Returns:
            `accuracy@k` (share of right answers) and `tokens_per_forward@k` for each k of `tokens_per_step`.

        Raises:
            WorkError: the disk refuses the best student.
        """
        result = self._measure(student, reporter)
        metrics = {}
        for number, setting in zip(self._config.tokens_per_step, result.settings, strict=True):
            metrics[f"accuracy@{number}"] = setting.accuracy
            metrics[f"tokens_per_forward@{number}"] = setting.tokens_per_forward
        best_by = self._config.best_by or max(self._config.tokens_per_step)
        found = Best(step, best_by, metrics[f"accuracy@{best_by}"], metrics)
        if self.best is None or found.accuracy > self.best.accuracy:
            self._keep(found, student)
        return metrics

    def record(self, step: int) -> None:
        """The evaluation after `step` finished steps is done; every process notes it."""
        self.evaluated.append(step)

    def _measure(self, student: Student, reporter: Reporter) -> EvalResult:
        """The engine joins weights of its model and takes memory: it gets a copy, and both are gone afterwards."""
        config, device = self._config, self._device
        copied = student.exported(torch.bfloat16 if device.type == "cuda" else torch.float32, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what training holds in reserve is the engine's for now
        engine = Engine(copied, self._tokenizer, memory_gib=memory_allowed(config.memory_gib, device))
        del copied
        try:
            return evaluate(
                engine,
                self._benchmark,
                self._settings,
                name="student",
                model=self._recipe.out,
                limit=config.limit,
                prompt=self._recipe.prompt,
                reporter=reporter,
            )
        finally:
            del engine
            if device.type == "cuda":
                release_memory()  # an engine and its graphs know each other

    def _keep(self, found: Best, student: Student) -> None:
        def write(folder: Path) -> None:
            with checked(folder):
                save_model(student.exported(device="cpu"), folder, self._tokenizer)
                (folder / BEST_FILE).write_text(json.dumps(asdict(found), indent=2) + "\n")

        try:
            replace_folder(self._folder, write)
        except OSError as error:
            raise WorkError(f"best model {self._folder}: {error.strerror or error}") from error
        self.best = found

    def _checked_answers(self, student: Student) -> int:
        """Answers at each setting. Nothing is decoded: a wrong request shows now, not after an hour of training."""
        engine = Engine(student.model, self._tokenizer, backend="plain")
        exam = prepare(engine, self._benchmark, self._settings, limit=self._config.limit, prompt=self._recipe.prompt)
        self._benchmark.task.grader().close()
        return len(exam.items)


def memory_allowed(gib: float | None, device: torch.device) -> float | None:
    """GiB that the process may hold, as the engine takes it, if the engine may add `gib` to what is held now.

    None leaves it to the engine: it plans with what training has let go of, and takes no more than it has use for.
    """
    if gib is None or device.type != "cuda":
        return gib
    return torch.cuda.memory_allocated(device) / 2**30 + gib


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder whole, in place of the one of that name; a kill leaves the old one or the new one.

    Args:
        folder: to appear.
        write: is given another folder, empty, to write into.

    Raises:
        OSError: the disk refuses.
    """
    partial, previous = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "previous"))
    _recover(folder)
    _remove((partial, previous))
    partial.mkdir(parents=True)
    try:
        write(partial)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(partial, folder)
    except Exception:
        _remove((partial,))
        _recover(folder)
        raise
    _remove((previous,))


def _recover(folder: Path) -> None:
    """Between two renames a kill leaves the old folder under its other name."""
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():
        with contextlib.suppress(FileNotFoundError):  # another process of the run did it
            os.replace(previous, folder)


def read_best(folder: Path) -> Best | None:
    """What the best student's folder says of it; None if there is none.

    Raises:
        RequestError: it cannot be read.
    """
    _recover(folder)
    file = folder / BEST_FILE
    if not folder.exists():
        return None
    if damage := damage_of_folder(folder):
        raise RequestError(f"best model {folder}: {damage}; remove the folder to look for the best student anew")
    try:
        return Best(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{file}: cannot be read; remove the folder to look for the best student anew") from error


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)

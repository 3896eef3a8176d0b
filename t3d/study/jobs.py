"""What a worker does: roll the teacher out, or train and measure a cell. Either may be begun again after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from t3d import trajectories
from t3d.checksums import CHECKSUMS_FILE, unsealed
from t3d.config import Config, PromptConfig, Recipe
from t3d.config.study import TestingConfig, TuningConfig
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.models import as_device, device_name, load_model, load_tokenizer
from t3d.study.cells import RUN
from t3d.study.measuring import tested, validated
from t3d.study.rows import CELL_FILE, Row, read_record, write_record
from t3d.study.timing import training_of
from t3d.training import run_recipe
from t3d.training.device import release_memory, with_precision
from t3d.training.precision import compute_dtype
from t3d.training.rounds.data import figures_of
from t3d.training.rounds.plan import plan_rounds
from t3d.training.rounds.record import ROUNDS_FILE
from t3d.training.run.checkpoint import PARTIAL, PREFIX
from t3d.training.run.folder import RECIPE_FILE, steps_of_finished

WEIGHTS = (".safetensors", ".pt")
TEST = "test"
"""A cell's answers to the test problems."""


class Rollouts(Config):
    """Shared rollouts of a seed, when they are finished.

    Attributes:
        seconds: that decoding them took or, after a kill, would have taken at the pace of the last part.
        answers, tokens: how many.
        tokens_per_forward: TPF.
        device: that they were decoded on.
    """

    seconds: float
    answers: int
    tokens: int
    tokens_per_forward: float
    device: str


class RolloutJob(Config):
    """Roll the teacher out.

    Attributes:
        recipe: whose first round says how.
        folder: of trajectories; record: file of `Rollouts`.
    """

    kind: Literal["rollouts"] = "rollouts"
    recipe: Recipe
    folder: str
    record: str


class CellJob(Config):
    """Train a student, if there is a recipe, and measure it.

    Attributes:
        row: what is known of it; filled in, it goes to the cell's folder.
        folder: the cell's.
        recipe: of its training; None for the teacher.
        model: of the teacher.
        device: None takes a CUDA device if there is one.
        rollouts: file of the shared rollouts' `Rollouts` that it learns from, if it does.
        prompt: how questions are put when it is measured.
        tune: how it is validated, if it is.
        test: the benchmark, and how it is tested if `is_tested`.
        keeps_model: whether its weights stay.
    """

    kind: Literal["cell"] = "cell"
    row: Row
    folder: str
    recipe: Recipe | None
    model: str
    device: str | None
    rollouts: str | None
    prompt: PromptConfig
    tune: TuningConfig | None
    test: TestingConfig
    is_tested: bool
    keeps_model: bool


Job = Annotated[RolloutJob | CellJob, Field(discriminator="kind")]


class Request(Config):
    """What a worker is sent."""

    job: Job


def do(job: RolloutJob | CellJob) -> None:
    """Do a job; what it finds is on disk when this returns.

    Raises:
        RequestError, WorkError: as rolling out, training and evaluating do.
    """
    try:
        roll_out(job) if isinstance(job, RolloutJob) else complete(job)
    finally:
        release_memory()


def roll_out(job: RolloutJob) -> None:
    """Roll the teacher out into the folder, going on where a kill stopped it."""
    device = as_device(job.recipe.device)
    recipe = with_precision(job.recipe, device)
    teacher = recipe.model.source or ""
    tokenizer = load_tokenizer(teacher)
    planned = plan_rounds(recipe, tokenizer)[0].rollout
    rollout = planned.config
    engine = Engine(
        load_model(teacher, dtype=rollout.dtype or compute_dtype(recipe), device=device),
        tokenizer,
        max_batch_size=rollout.batch_size,
        backend=rollout.backend,
        memory_gib=rollout.memory_gib,
    )

    def decode() -> trajectories.RolloutSummary:
        return trajectories.rollout(
            engine,
            planned.questions.prompts,
            planned.few_step,
            job.folder,
            model_name=teacher,
            form=planned.questions.form,
            samples=rollout.samples,
            resume=True,
        )

    part = decode()
    if not part.num_tokens:  # a kill came before the record was written: their time is not known
        shutil.rmtree(job.folder)
        part = decode()
    whole = figures_of(Path(job.folder))
    found = Rollouts(
        seconds=part.seconds * whole["tokens"] / part.num_tokens,
        answers=whole["answers"],
        tokens=whole["tokens"],
        tokens_per_forward=whole["tokens_per_forward"],
        device=device_name(device),
    )
    write_record(found, Path(job.record))


def complete(job: CellJob) -> None:
    """Train a cell, validate and test it, as far as that is asked for and not done."""
    folder, row = Path(job.folder), job.row
    run, model = folder / RUN, job.model
    device = as_device(job.device)
    if job.recipe is not None:
        model = str(run / "model")
    if job.recipe is not None and (row.training is None or not _has_weights(run / "model")):
        _train(job.recipe, folder)
        rolled_out = _seconds_of(Path(job.rollouts)) if job.rollouts else 0.0
        row = row.model_copy(update={"training": training_of(run, rolled_out, device_name(device))})
    engine = Engine.from_pretrained(model, dtype=job.test.dtype, device=device)
    if job.tune is not None:
        row = validated(engine, row, job.tune, job.test, job.prompt)
    if job.is_tested:
        row = tested(engine, row, job.test, job.prompt, model=model, out=folder / TEST)
    write_record(row, folder / CELL_FILE)
    if job.recipe is not None:
        drop_weights(run, keeps_model=job.keeps_model)


def _seconds_of(rollouts: Path) -> float:
    """That shared rollouts took.

    Raises:
        RequestError: their record cannot be read.
    """
    try:
        return read_record(Rollouts, rollouts).seconds
    except (OSError, ValueError) as error:
        raise RequestError(f"{rollouts}: cannot be read; remove it to have the answers timed again") from error


def drop_weights(run: Path, keeps_model: bool) -> None:
    """Delete the weights of a run folder, those of checkpoints and rounds too; `keeps_model` leaves the student's."""
    for file in run.rglob("*"):
        if file.suffix in WEIGHTS and not (keeps_model and file.parent == run / "model"):
            file.unlink()
            (file.parent / CHECKSUMS_FILE).unlink(missing_ok=True)  # of what is gone


def _train(recipe: Recipe, cell: Path) -> None:
    """Begin a cell's training or go on with it; one that is finished stays."""
    run = cell / RUN
    if not _is_whole(run):
        shutil.rmtree(run)
        shutil.rmtree(cell / TEST, ignore_errors=True)  # another student may give other answers
    if recipe.rounds or steps_of_finished(run) is None:
        run_recipe(recipe, resume=(run / RECIPE_FILE).exists())
        release_memory()


def _is_whole(run: Path) -> bool:
    """Whether all is there that a run says is finished: a study may have been copied without its large files."""
    if not all(_has_weights(checkpoint) for checkpoint in run.rglob(f"{PREFIX}*") if checkpoint.suffix != PARTIAL):
        return False
    if not (run / ROUNDS_FILE).exists():
        return steps_of_finished(run) is None or _has_weights(run / "model")
    finished = unsealed((run / ROUNDS_FILE).read_bytes())["finished"]
    return all(
        _has_weights(run / part / "model") if part.endswith("/training") else (run / part).exists()
        for part in finished
        if not part.endswith("/judged")
    )


def _has_weights(model: Path) -> bool:
    return any(model.glob("*.safetensors"))

"""One training of a recipe, worked out: its share of the work, its memory, its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t3d.config import Recipe
from t3d.corruption import TrainingRow
from t3d.doctor.gpus import Cluster
from t3d.doctor.measured import MEASURED_ON, TRAINING, why_no_speed
from t3d.doctor.memory import Memory, memory_of_step
from t3d.doctor.seconds import StepTime, time_of_step
from t3d.doctor.subject import Subject, Weight, student_on_paper, weights_of
from t3d.doctor.workload import StepWork, is_tiled, step_work
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig, feed_forward_of
from t3d.training.parallel.strategy import (
    check_evaluation_for,
    has_frozen_model,
    is_sharded,
    num_shards,
    with_strategy_for,
)
from t3d.training.reference import reference_form
from t3d.training.requirements import check_shares, check_training


@dataclass(frozen=True, slots=True)
class Training:
    """A training on paper.

    Attributes:
        name: "training", or which round's.
        recipe: with all that it left open filled in.
        cluster: that it runs on.
        weights: that a process holds, before they are dealt out.
        work: of a step.
        memory: of a GPU.
        time: of a step.
        no_seconds: why nothing can be said of seconds, so that those in `time` are void; empty where something can.
    """

    name: str
    recipe: Recipe
    cluster: Cluster
    weights: Sequence[Weight]
    work: StepWork
    memory: Memory
    time: StepTime
    no_seconds: str

    @property
    def seconds(self) -> float | None:
        """Of all its steps; None: not known."""
        return None if self.no_seconds else self.time.seconds * self.recipe.optim.steps


def plan_training(
    recipe: Recipe,
    subject: Subject,
    rows: Sequence[TrainingRow],
    cluster: Cluster,
    name: str = "training",
    weights: Sequence[Weight] | None = None,
) -> Training:
    """A recipe's training on a cluster.

    Args:
        recipe: as it was written.
        subject: its model.
        rows: like those of a step.
        cluster: that it runs on.
        name: of it.
        weights: of its model in its precision, where they were found before.

    Raises:
        RequestError: what training would refuse.
    """
    recipe = resolved(recipe, subject, cluster)
    if weights is None:
        weights = weights_of(student_on_paper(recipe, subject.config).model)
    work = step_work(recipe, subject.config, rows, cluster.num_gpus)
    memory = memory_of_step(recipe, subject.config, weights, work, cluster.gpu.memory_bytes, cluster.num_gpus)
    time = time_of_step(recipe, subject.config, weights, work, memory.checkpointed, cluster)
    return Training(name, recipe, cluster, weights, work, memory, time, _why_no_seconds(recipe, subject.config))


def _why_no_seconds(recipe: Recipe, config: BlockDiffusionConfig) -> str:
    if recipe.precision not in ("bf16", "bf16_pure"):
        return f"no training in {recipe.precision} was measured"
    return why_no_speed(config)


def resolved(recipe: Recipe, subject: Subject, cluster: Cluster) -> Recipe:
    """The recipe with precision and `distributed` filled in as such GPUs would have it, and checked as training does.

    Raises:
        RequestError: what training would refuse.
    """
    if recipe.precision is None:
        recipe = recipe.model_copy(update={"precision": "bf16"})  # all GPUs of `GPUS` compute in it
    count, memory = cluster.num_gpus, cluster.gpu.memory_bytes
    recipe = with_strategy_for(recipe, subject.num_weights, count, memory)
    check_training(recipe)
    if is_sharded(recipe, count):
        check_evaluation_for(recipe, subject.num_weights, num_shards(recipe, count), memory)
    check_shares(recipe, count)
    if recipe.compute.attention == "flex" and not is_tiled(recipe, subject.config):
        raise RequestError(f"compute.attention flex: does not take heads of {subject.config.head_dim}; use sdpa")
    return recipe


def not_measured(training: Training, config: BlockDiffusionConfig) -> list[str]:
    """What of a training is arithmetic alone, without a measurement of its like."""
    recipe, gpu = training.recipe, training.cluster.gpu
    sizes = sorted({point.hidden_size for point in TRAINING})
    frozen = has_frozen_model(recipe) and reference_form(recipe) == "offload"
    has_seconds = not training.no_seconds
    unlike = {
        f"seconds on {gpu.name}: an {MEASURED_ON.name}'s, scaled by peak and memory bandwidth": (
            has_seconds and gpu is not MEASURED_ON
        ),
        f"several GPUs: {recipe.distributed.strategy}'s exchange and memory": training.cluster.num_gpus > 1,
        f"hidden size {config.hidden_size}: measured were {sizes[0]} to {sizes[-1]}": (
            not sizes[0] <= config.hidden_size <= sizes[-1]
        ),
        f"precision {recipe.precision}": recipe.precision != "bf16",
        f"objective {recipe.objective.name}": recipe.objective.name != "t3d",
        f"optim.optimizer {recipe.optim.optimizer}": recipe.optim.optimizer != "adamw",
        "reference.form offload": frozen,
        "DoRA": recipe.model.adapter is not None and recipe.model.adapter.type == "dora",
        "four-bit weights": recipe.model.quantize is not None,
        "a mixture of experts": feed_forward_of(config).held > 0,
        "attention by sdpa, whose memory and time are more": not is_tiled(recipe, config),
        "layers that are not compiled, which keep more and take longer": recipe.compute.compile is False,
    }
    return [what for what, is_unlike in unlike.items() if is_unlike]

"""How long an optimizer step takes. Pure arithmetic: work over what was measured, bytes over bandwidths.

Nothing is taken to overlap: what processes exchange is added to what they compute, which is the worst case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t3d.config import Recipe
from t3d.doctor.gpus import Cluster
from t3d.doctor.holding import outside_layers, trained_weights
from t3d.doctor.measured import COPY_SHARE, TRAINING, TrainingPoint, efficiency, efficiency_on
from t3d.doctor.memory import reference_copy_bytes
from t3d.doctor.subject import Weight
from t3d.doctor.workload import StepWork
from t3d.models import BlockDiffusionConfig
from t3d.training.parallel.strategy import has_frozen_model, is_sharded, num_shards
from t3d.training.precision import compute_dtype
from t3d.training.reference import reference_form
from t3d.training.throughput import Work, forward_flops, training_flops

EXCHANGE, RECOMPUTED, ADAPTERS, UPDATE = "exchange", "layers computed again", "adapters", "clipping and update"
PRODUCTS, TRANSFER = "forwards and backward", "reference to the device"


@dataclass(frozen=True, slots=True)
class StepTime:
    """Of one optimizer step.

    Attributes:
        parts: what -> seconds.
        flops: that the mathematics asks for, of all processes.
        exchanged_bytes: that each process sends.
        mfu: share of all GPUs' peak, 0 .. 1.
    """

    parts: Mapping[str, float]
    flops: float
    exchanged_bytes: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self.parts.values())


def time_of_step(
    recipe: Recipe,
    config: BlockDiffusionConfig,
    weights: Sequence[Weight],
    work: StepWork,
    checkpointed: int,
    cluster: Cluster,
    points: Sequence[TrainingPoint] = TRAINING,
) -> StepTime:
    """The time of a step, of the process that has most to do.

    Args:
        recipe: precision and `distributed` are filled in.
        config, weights: of what is trained.
        work: of the step.
        checkpointed: layers that compute their activations again.
        cluster: that it runs on.
        points: measured, to go by.
    """
    gpu, num_processes = cluster.gpu, cluster.num_gpus
    share = efficiency_on(gpu, efficiency(config.hidden_size, recipe.model.adapter is not None, points))
    speed, moved = share * gpu.peak_flops, COPY_SHARE * gpu.bytes_per_second
    shards = num_shards(recipe, num_processes)
    within, across = exchanged_bytes(recipe, weights, work.num_batches, num_processes)
    inner, outer = cluster.link_of(shards), cluster.link_of(num_processes // shards, neighbours=shards)
    waits = has_frozen_model(recipe) and reference_form(recipe) == "offload"
    parts = {
        PRODUCTS: step_flops(recipe, config, work.own) / speed,
        RECOMPUTED: recomputed_flops(config, work.own, checkpointed) / speed,
        ADAPTERS: adapter_traffic(recipe, config, weights, work.own, checkpointed) / moved,
        UPDATE: update_bytes(recipe, weights, shards) / moved,
        TRANSFER: reference_copy_bytes(recipe, weights, shards) / gpu.bus_bytes_per_second if waits else 0.0,
        EXCHANGE: within / inner + across / outer,
    }
    flops = step_flops(recipe, config, work.whole)
    mfu = flops / sum(parts.values()) / (gpu.peak_flops * num_processes)
    return StepTime({name: seconds for name, seconds in parts.items() if seconds}, flops, within + across, mfu)


def step_flops(recipe: Recipe, config: BlockDiffusionConfig, work: Work) -> float:
    """What the mathematics asks for (`t3d.training.throughput`)."""
    return training_flops(config, work, has_reference=has_frozen_model(recipe), trains_all=recipe.model.adapter is None)


def recomputed_flops(config: BlockDiffusionConfig, work: Work, checkpointed: int) -> float:
    """The forward of the layers that forgot their activations; the LM head is none of them."""
    layers = Work(work.num_tokens, work.num_pairs, 0, work.num_examples)
    return forward_flops(config, layers) * checkpointed / config.num_hidden_layers


def adapter_traffic(
    recipe: Recipe, config: BlockDiffusionConfig, weights: Sequence[Weight], work: Work, checkpointed: int
) -> float:
    """Bytes that adapters move through memory: their products are small, and what they read and write is not.

    A forward reads the layer's input again, writes and reads r numbers, writes the adapter's output, and adds it to the
    layer's: two reads and a write. That is in + 4 out + 2 r elements a position and layer; a backward is two forwards'.
    """
    if recipe.model.adapter is None:
        return 0.0
    passes = 3 + has_frozen_model(recipe) + checkpointed / config.num_hidden_layers
    factors = [each.shape for each in weights if each.is_trained and each.is_matrix]
    rank = recipe.model.adapter.rank
    elements = 0
    for rows, columns in factors:  # A: [r, in], B: [out, r]
        elements += columns + rank if rows == rank and columns != rank else 4 * rows + rank
    return float(compute_dtype(recipe).itemsize * elements * work.num_tokens * passes)


def update_bytes(recipe: Recipe, weights: Sequence[Weight], shards: int = 1) -> float:
    """A weight, its gradient and moments are read, all but the gradient written; clipping reads that twice, writes it.

    Seven and three passes in the weight's dtype; 8-bit moments are a byte each way.
    """
    quantized = recipe.optim.optimizer == "adamw_8bit"
    return float(
        sum(
            each.part(shards) * (6 * each.itemsize + 4 if quantized else 10 * each.itemsize)
            for each in trained_weights(weights)
        )
    )


def exchanged_bytes(
    recipe: Recipe, weights: Sequence[Weight], num_batches: int, num_processes: int
) -> tuple[float, float]:
    """What each process sends in a step, over rings: (n - 1) / n of what is gathered or scattered.

    DDP adds gradients up once: a scatter and a gather. FSDP gathers each layer for the student's forward and backward
    and for the reference's forward, in every batch, in what products are computed in; the rest for the student, as it
    is held. Gradients are scattered in float32, once a step (`whole`) or in every batch; groups that hold the same
    add up their parts as DDP does.

    Returns:
        bytes within a group of shards, and between all processes.
    """
    trained = trained_weights(weights)
    if not is_sharded(recipe, num_processes):
        return 0.0, 2 * _ring(num_processes) * sum(each.itemsize * each.numel for each in trained)
    shards = num_shards(recipe, num_processes)
    outside = outside_layers(weights)
    total = sum(each.numel for each in weights)
    times = 1 if recipe.distributed.gradients == "whole" else num_batches
    layers = (2 + has_frozen_model(recipe)) * compute_dtype(recipe).itemsize * (total - outside)
    gathers = num_batches * (layers + weights[0].itemsize * outside)
    within = _ring(shards) * (gathers + 4 * total * times)
    return within, 2 * _ring(num_processes // shards) * 4 * total / shards * times


def _ring(size: int) -> float:
    """Share of an array that each member of a ring passes on."""
    return (size - 1) / size

"""Memory of one GPU in training, itemised. Pure arithmetic over what a recipe holds and what its batches hold.

What the trainer works out itself is taken from it: the choice of layers to compute again, the LM head's scratch, what
sharing takes for a while (`t3d.training.memory`, `t3d.training.parallel.processes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t3d.config import Recipe
from t3d.doctor.holding import (
    copy_bytes,
    gradient_bytes,
    largest_layer,
    moment_bytes,
    outside_layers,
    trained_weights,
    weight_bytes,
)
from t3d.doctor.subject import Weight
from t3d.doctor.workload import StepWork
from t3d.models import BlockDiffusionConfig, feed_forward_of
from t3d.models.scoring import CHUNK_LOGITS, SMALLEST_CHUNK
from t3d.objectives import build_objective
from t3d.training.memory import SAFE_SHARE, activation_bytes, head_scratch_bytes, layers_to_checkpoint
from t3d.training.parallel.processes import gathered_bytes
from t3d.training.parallel.strategy import has_frozen_model, is_sharded, num_shards
from t3d.training.precision import compute_dtype
from t3d.training.reference import reference_form

CONTEXT_BYTES = 2**30
"""Of driver and libraries beside what torch holds, half of it never seen by torch; NCCL's buffers take as much."""
GATHERED, ACTIVATIONS, CONTEXT = "gathered by FSDP", "activations", "driver and libraries"


@dataclass(frozen=True, slots=True)
class Memory:
    """What one GPU holds at the worst moment of a step.

    Attributes:
        items: what -> bytes.
        capacity: of the GPU.
        checkpointed: layers that compute their activations again.
        num_layers: of the model.
        kept_by_layer: bytes that a layer keeps for its backward over the largest batch.
    """

    items: Mapping[str, int]
    capacity: int
    checkpointed: int
    num_layers: int
    kept_by_layer: int

    @property
    def total(self) -> int:
        """Of all items."""
        return sum(self.items.values())

    @property
    def peak(self) -> int:
        """What torch will call its peak."""
        return self.total - self.items.get(CONTEXT, 0)

    @property
    def reserve(self) -> int:
        """What is left; less than nothing where it does not fit."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool:
        """Whether all of it does."""
        return self.reserve >= 0


def memory_of_step(
    recipe: Recipe,
    config: BlockDiffusionConfig,
    weights: Sequence[Weight],
    work: StepWork,
    capacity: int,
    num_processes: int = 1,
    context: int | None = None,
) -> Memory:
    """The memory of a step.

    Args:
        recipe: precision and `distributed` are filled in.
        config, weights: of what is trained.
        work: of the step, in this process.
        capacity: bytes of the GPU.
        num_processes: that train together.
        context: of driver and libraries; None is what is taken for usual.
    """
    sharded, shards = is_sharded(recipe, num_processes), num_shards(recipe, num_processes)
    if context is None:
        context = CONTEXT_BYTES * (2 if num_processes > 1 else 1)
    held = held_on_device(recipe, weights, num_processes)
    coming = {
        "gradients": gradient_bytes(weights, shards),
        "optimizer's moments": moment_bytes(weights, recipe.optim.optimizer, shards),
    }
    gathered = _gathered(recipe, weights) if sharded else 0
    head, num_logits = config.vocab_size * config.hidden_size, _chunk_logits(work.largest_scored, config.vocab_size)
    trains_all = recipe.model.adapter is None
    free = int(SAFE_SHARE * (capacity - context - sum(held.values())))
    free -= sum(coming.values()) + gathered + head_scratch_bytes(head, trains_all)
    positions = max(work.largest_positions, recipe.batch.tokens_per_batch)
    inputs = _width(recipe) * config.hidden_size
    count = recipe.compute.checkpoint_layers
    if count is None:
        kept = kept_by_layer(recipe, config, weights, positions, sharded)
        count = layers_to_checkpoint(config.num_hidden_layers, kept, inputs * positions, free)
    count = min(count, config.num_hidden_layers)
    kept = kept_by_layer(recipe, config, weights, work.largest_positions, sharded)
    spent = activation_bytes(config.num_hidden_layers, count, kept, inputs * work.largest_positions)
    extra = _of_teacher(recipe, config, work, num_logits)
    in_student = {
        **coming,
        GATHERED: gathered,
        ACTIVATIONS: spent,
        "LM head's chunk": head_scratch_bytes(head, trains_all, num_logits) + extra,
    }
    # what only others need has the room of gradients and activations
    others = sum(in_student.values()) - coming["optimizer's moments"]
    awake = max(0, _awake(recipe, weights, num_processes) - others)
    evaluated = max(0, _evaluated(recipe, weights) - others)
    items = {**held, **in_student, "reference while awake": awake, CONTEXT: context}
    items["evaluation's copy"] = max(0, evaluated - awake)
    items = {name: size for name, size in items.items() if size}
    return Memory(items, capacity, count, config.num_hidden_layers, kept)


def held_on_device(recipe: Recipe, weights: Sequence[Weight], num_processes: int = 1) -> dict[str, int]:
    """What a process holds before its first step, by name: weights, the reference, DDP's buckets."""
    sharded, shards = is_sharded(recipe, num_processes), num_shards(recipe, num_processes)
    trained = trained_weights(weights)
    frozen = [each for each in weights if not each.is_trained]
    buckets = gradient_bytes(weights) if num_processes > 1 and not sharded else 0
    own = {"adapters": trained, "frozen weights": frozen} if frozen else {"weights": trained}
    held = {name: weight_bytes(each, shards) for name, each in own.items()}
    return {**held, "reference": _reference(recipe, weights, shards), "DDP's buckets": buckets}


def _reference(recipe: Recipe, weights: Sequence[Weight], num_shards: int) -> int:
    if not has_frozen_model(recipe):
        return 0
    form = reference_form(recipe)
    if form == "adapter":
        return weight_bytes(trained_weights(weights))
    return reference_copy_bytes(recipe, weights, num_shards) if form == "copy" else 0


def reference_copy_bytes(recipe: Recipe, weights: Sequence[Weight], num_shards: int = 1) -> int:
    """Of a second model, wherever it lies (`t3d.training.reference.build_reference`)."""
    held_in = compute_dtype(recipe).itemsize if recipe.model.adapter is None else None
    return copy_bytes(weights, held_in, num_shards)


def _awake(recipe: Recipe, weights: Sequence[Weight], num_processes: int) -> int:
    """What the frozen model takes on the device only while it judges, when there are no gradients yet."""
    if not has_frozen_model(recipe):
        return 0
    form = reference_form(recipe)
    if form == "adapter":  # the student's own values, put aside
        return weight_bytes(trained_weights(weights))
    return reference_copy_bytes(recipe, weights) if form == "offload" and not is_sharded(recipe, num_processes) else 0


def _evaluated(recipe: Recipe, weights: Sequence[Weight]) -> int:
    """A bfloat16 copy of the whole model, which answers between steps; its engine takes what is free beside it."""
    plain = [each for each in weights if recipe.model.adapter is None or not each.is_trained]
    return 2 * sum(each.numel for each in plain) if recipe.evaluation is not None else 0


def kept_by_layer(
    recipe: Recipe, config: BlockDiffusionConfig, weights: Sequence[Weight], positions: int, sharded: bool = False
) -> int:
    """Bytes that a compiled layer keeps for its backward.

    With K the hidden and I the intermediate size, for each position: the residual stream and its norm, before attention
    and before the MLP (4 K); q, k and v as they come from their products, q and k again after norm and rotation, v as
    attention takes it, attention's output (three times the widths of q and of k); gate, up and their product (3 I);
    attention's normalisers in float32; what adapters bring down to their rank. And the layer's weights, rounded to
    bfloat16. How near that comes to what was measured: docs/scaling.md.
    """
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    elements = 4 * config.hidden_size + 3 * (queries + keys) + _behind_attention(config)
    adapter = recipe.model.adapter
    if adapter is not None:
        pairs = sum(each.is_trained and each.is_matrix for each in weights) // 2
        elements += adapter.rank * pairs // config.num_hidden_layers
    width = _width(recipe)
    rounds_weights = recipe.precision == "bf16" and adapter is None and not sharded
    rounded = width * largest_layer(weights) if rounds_weights else 0
    return (width * elements + 4 * config.num_attention_heads) * positions + rounded


def _behind_attention(config: BlockDiffusionConfig) -> int:
    """Elements a position behind attention; experts also get a copy of their input each, and leave an output."""
    forward = feed_forward_of(config)
    if not forward.held:
        return 3 * config.intermediate_size
    used = forward.used // config.num_hidden_layers
    return used * (3 * config.moe_intermediate_size + 2 * config.hidden_size)


def _width(recipe: Recipe) -> int:
    """Bytes of an activation."""
    return compute_dtype(recipe).itemsize


def _chunk_logits(num_scored: int, vocab_size: int) -> int:
    """Logits of the largest chunk that tokens with loss fill (`t3d.models.scoring`)."""
    return min(num_scored, max(SMALLEST_CHUNK, CHUNK_LOGITS // vocab_size)) * vocab_size


def _of_teacher(recipe: Recipe, config: BlockDiffusionConfig, work: StepWork, num_logits: int) -> int:
    """A teacher's final hidden states of a whole step, and its logits of a chunk beside the student's."""
    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    if not objective.needs_teacher:
        return 0
    width = _width(recipe)
    return width * config.hidden_size * work.own.num_scored + (width + 4) * num_logits


def _gathered(recipe: Recipe, weights: Sequence[Weight]) -> int:
    """Three layers, gradients on the way; and what lies outside of the layers, of student and reference."""
    width, outside = compute_dtype(recipe).itemsize, outside_layers(weights)
    whole = sum(each.numel for each in weights) if recipe.distributed.gradients == "whole" else 0
    root = outside * (weights[0].itemsize + (width if has_frozen_model(recipe) else 0))
    return gathered_bytes(largest_layer(weights), width, whole) + root

"""The host's memory and the disk: what a training puts there. Pure arithmetic."""

from __future__ import annotations

from t3d.doctor.holding import moment_bytes, trained_weights, weight_bytes
from t3d.doctor.memory import reference_copy_bytes
from t3d.doctor.training import Training
from t3d.training.parallel.strategy import has_frozen_model, is_sharded, num_shards
from t3d.training.reference import reference_form

READING = "while the model is read"
"""Over before the first step: not beside the others."""


def host_memory(training: Training) -> dict[str, int]:
    """Bytes on the machine of the main process, by what they are for; processes, libraries and batches come on top."""
    recipe, weights, cluster = training.recipe, training.weights, training.cluster
    count, shards = cluster.gpus_per_node, num_shards(recipe, cluster.num_gpus)
    sharded = is_sharded(recipe, cluster.num_gpus)
    kept = recipe.checkpoint
    items = {READING: (1 if sharded else count) * _loaded(training)}
    if kept.asynchronous and (kept.every_steps or kept.every_minutes):
        items["checkpoint being written"] = (count if sharded else 1) * checkpoint_bytes(training, shards)
    if has_frozen_model(recipe) and reference_form(recipe) == "offload":
        items["offloaded reference"] = count * reference_copy_bytes(recipe, weights, shards)
    if sharded:
        items["student put together for evaluation and the end"] = weight_bytes(weights)
    elif recipe.model.adapter is not None:
        items["merged model at the end"] = exported_bytes(training)
    return items


def peak_of_host(items: dict[str, int]) -> int:
    """The most of them at once."""
    return max(items[READING], sum(size for name, size in items.items() if name != READING))


def _loaded(training: Training) -> int:
    """A model as it is read: unpacked, without adapters. Each process reads it, or the main one deals it out."""
    weights = [each for each in training.weights if not (each.is_trained and training.recipe.model.adapter)]
    return sum(each.itemsize * each.numel for each in weights)


def checkpoint_bytes(training: Training, num_shards: int = 1) -> int:
    """What is trained, its moments, and the reference's own of it (`t3d.training.run.checkpoint`)."""
    recipe, trained = training.recipe, trained_weights(training.weights)
    size = weight_bytes(trained, num_shards) + moment_bytes(trained, recipe.optim.optimizer, num_shards)
    if not has_frozen_model(recipe):
        return size
    is_whole = reference_form(recipe) != "adapter"
    return size + (reference_copy_bytes(recipe, trained, num_shards) if is_whole else weight_bytes(trained))


def exported_bytes(training: Training) -> int:
    """The plain model that a run leaves: as it is trained, or merged with its adapters in float32."""
    if training.recipe.model.adapter is None:
        return weight_bytes(training.weights)
    return 4 * sum(each.numel for each in training.weights if not each.is_trained)


def disk(training: Training) -> dict[str, int]:
    """Bytes that a run folder comes to at its fullest, by what they are; rollouts and metrics are small beside them."""
    recipe, one = training.recipe, checkpoint_bytes(training)
    items = {"model": exported_bytes(training)}
    if recipe.checkpoint.every_steps or recipe.checkpoint.every_minutes:
        items[f"checkpoints (one is {one / 2**30:.1f} GiB)"] = one * (recipe.checkpoint.keep + 1)
    if recipe.evaluation is not None:
        items["best"] = exported_bytes(training)
    if recipe.optim.keep_moments:
        items["moments for the next round"] = moment_bytes(training.weights, recipe.optim.optimizer)
    return items

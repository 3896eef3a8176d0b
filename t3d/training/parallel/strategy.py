"""How several processes share a training: what a recipe leaves open, chosen by what each of them would have to hold."""

from __future__ import annotations

import os

import torch

from t3d.config import Recipe
from t3d.errors import RequestError
from t3d.objectives import build_objective
from t3d.training.precision import compute_dtype, trained_dtype

STATE_SHARE = 0.7
"""Of a device's memory, for what a process holds whatever its batches; activations and scratch need the rest."""
GRADIENTS_SHARE = 0.15
"""Of a device's memory, up to which sharded processes keep whole gradients between the batches of a step."""
FOREIGN = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""What `accelerate launch` says of wrappers of its own -> their names."""


def check_launch() -> None:
    """Refuse a launch under which accelerate would wrap models by itself.

    Raises:
        RequestError: it would.
    """
    for variable, name in FOREIGN.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise RequestError(
                f"launched with accelerate's own {name} settings: launch without them (launch/accelerate-fsdp.yaml), "
                "and set distributed.strategy: fsdp in the recipe, which shards reference and checkpoints too"
            )


def with_strategy(recipe: Recipe, num_weights: int, num_processes: int, device: torch.device) -> Recipe:
    """The recipe with its `distributed` filled in. A single process is left as it is.

    Args:
        recipe: its precision is filled in.
        num_weights: of the model.
        num_processes: that train together.
        device: of this one; they are taken to be alike.

    Raises:
        RequestError: they cannot be grouped as `distributed.shards` says.
    """
    return with_strategy_for(recipe, num_weights, num_processes, memory_of(device)) if num_processes > 1 else recipe


def with_strategy_for(recipe: Recipe, num_weights: int, num_processes: int, memory: int | None) -> Recipe:
    """`with_strategy` for devices of so many bytes, which need not be here; None: as many as it takes."""
    if num_processes == 1:
        return recipe
    asked = recipe.distributed
    if asked.shards is not None and num_processes % asked.shards:
        raise RequestError(
            f"distributed.shards {asked.shards}: must divide the number of processes, {num_processes}; leave it out to "
            "shard over all of them"
        )
    fits = memory is None or recipe.model.adapter is not None or state_bytes(recipe, num_weights) < STATE_SHARE * memory
    strategy = asked.strategy if asked.strategy != "auto" else ("ddp" if fits else "fsdp")
    roomy = memory is None or 4 * num_weights < GRADIENTS_SHARE * memory
    gradients = asked.gradients or ("whole" if roomy else "sharded")
    chosen = asked.model_copy(update={"strategy": strategy, "gradients": gradients})
    return recipe.model_copy(update={"distributed": chosen})


def is_sharded(recipe: Recipe, num_processes: int) -> bool:
    """Whether each process holds a part only; the recipe's `distributed` is filled in."""
    return num_processes > 1 and recipe.distributed.strategy == "fsdp"


def num_shards(recipe: Recipe, num_processes: int) -> int:
    """Over how many processes everything is dealt out; 1: each holds all. The recipe's `distributed` is filled in."""
    if not is_sharded(recipe, num_processes):
        return 1
    return recipe.distributed.shards or num_processes


def state_bytes(recipe: Recipe, num_weights: int, num_shards: int = 1) -> int:
    """What each process holds whatever its batches: weights, gradients, moments, reference, and DDP's buckets.

    All weights are trained; adapters, beside which a model takes a fraction of that, are not asked about.

    Args:
        recipe: its precision is filled in.
        num_weights: of the model.
        num_shards: over which all of it is dealt out; 1: each process holds it all.
    """
    has_copy = has_frozen_model(recipe) and recipe.reference.form in (None, "copy")
    width = trained_dtype(recipe).itemsize
    moments = 2 if recipe.optim.optimizer == "adamw_8bit" else 2 * width
    buckets = width if num_shards == 1 else 0
    each = 2 * width + moments + buckets + (compute_dtype(recipe).itemsize if has_copy else 0)
    return each * num_weights // num_shards


def has_frozen_model(recipe: Recipe) -> bool:
    """Whether a reference or a teacher is held beside the student."""
    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    return objective.needs_reference or objective.needs_teacher


def check_evaluation(recipe: Recipe, num_weights: int, num_shards: int, device: torch.device) -> None:
    """Refuse an evaluation for which the main process would have no room: a whole model beside its shards.

    Raises:
        RequestError: there is none.
    """
    check_evaluation_for(recipe, num_weights, num_shards, memory_of(device))


def check_evaluation_for(recipe: Recipe, num_weights: int, num_shards: int, memory: int | None) -> None:
    """`check_evaluation` for devices of so many bytes, which need not be here; None: as many as it takes."""
    if recipe.evaluation is None or memory is None:
        return
    held, copied = state_bytes(recipe, num_weights, num_shards), torch.bfloat16.itemsize * num_weights
    if held + copied > 0.95 * memory:
        raise RequestError(
            f"evaluation: a whole copy of the model ({copied / 2**30:.0f} GiB) does not fit beside a process's shards "
            f"({held / 2**30:.0f} GiB of {memory / 2**30:.0f}); train on more processes, or leave evaluation out "
            "and run t3d eval on the finished model"
        )


def memory_of(device: torch.device) -> int | None:
    """Bytes of a CUDA device; None for the CPU, whose memory nobody counts here."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None

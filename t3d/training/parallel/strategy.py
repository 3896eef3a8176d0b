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
    """
    if num_processes == 1:
        return recipe
    asked, memory = recipe.distributed, memory_of(device)
    fits = memory is None or recipe.model.adapter is not None or state_bytes(recipe, num_weights) < STATE_SHARE * memory
    strategy = asked.strategy if asked.strategy != "auto" else ("ddp" if fits else "fsdp")
    roomy = memory is None or 4 * num_weights < GRADIENTS_SHARE * memory
    gradients = asked.gradients or ("whole" if roomy else "sharded")
    chosen = asked.model_copy(update={"strategy": strategy, "gradients": gradients})
    return recipe.model_copy(update={"distributed": chosen})


def is_sharded(recipe: Recipe, num_processes: int) -> bool:
    """Whether each process holds a part only; the recipe's `distributed` is filled in."""
    return num_processes > 1 and recipe.distributed.strategy == "fsdp"


def state_bytes(recipe: Recipe, num_weights: int, num_shards: int = 1) -> int:
    """What each process holds whatever its batches: weights, gradients, moments, reference, and DDP's buckets.

    All weights are trained; adapters, beside which a model takes a fraction of that, are not asked about.

    Args:
        recipe: its precision is filled in.
        num_weights: of the model.
        num_shards: over which all of it is dealt out; 1: each process holds it all.
    """
    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    has_copy = (objective.needs_reference or objective.needs_teacher) and recipe.reference.form in (None, "copy")
    width = trained_dtype(recipe).itemsize
    moments = 2 if recipe.optim.optimizer == "adamw_8bit" else 2 * width
    buckets = width if num_shards == 1 else 0
    each = 2 * width + moments + buckets + (compute_dtype(recipe).itemsize if has_copy else 0)
    return each * num_weights // num_shards


def check_evaluation(recipe: Recipe, num_weights: int, num_shards: int, device: torch.device) -> None:
    """Refuse an evaluation for which the main process would have no room: a whole model beside its shards.

    Raises:
        RequestError: there is none.
    """
    memory = memory_of(device)
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

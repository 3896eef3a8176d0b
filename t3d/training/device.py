"""The device of a run, and what it computes in."""

from __future__ import annotations

import gc
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from t3d.config import Recipe
from t3d.models import as_device
from t3d.training.parallel.strategy import check_launch

LONGEST_WAIT = timedelta(hours=12)
"""Of other processes for the main one, which evaluates alone; torch's own limit is minutes."""


def prepare_device(recipe: Recipe) -> tuple[Accelerator, Recipe]:
    """The device that a recipe names, set to compute as it asks; and the recipe with its precision filled in.

    Raises:
        RequestError: no such device here, or a launch under which accelerate would wrap models itself.
    """
    check_launch()
    chosen = as_device(recipe.device)  # accelerate would take the CPU in place of a missing GPU without a word
    accelerator = Accelerator(
        mixed_precision="no",  # it would hold for every later run of the process; the learner sets its own
        cpu=chosen.type == "cpu",  # left to itself it would take an MPS or XPU device, on which nothing is tested
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    recipe = with_precision(recipe, accelerator.device)
    torch.set_float32_matmul_precision("high" if recipe.precision == "tf32" else "highest")
    return accelerator, recipe


def release_memory() -> None:
    """Let go of models that nobody holds any more, so that the next find their memory; takes a moment."""
    gc.collect()
    torch.cuda.empty_cache()


def with_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with its precision filled in: bf16 on a CUDA device that computes in it, else fp32."""
    if recipe.precision is not None:
        return recipe
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return recipe.model_copy(update={"precision": "bf16" if has_bf16 else "fp32"})

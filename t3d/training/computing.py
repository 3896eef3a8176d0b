"""How forward and backward passes are carried out: what a recipe leaves open, chosen for the model and the device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from t3d.config import Recipe
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig
from t3d.models.flex import SMALLEST_HEAD


@dataclass(frozen=True, slots=True)
class Computing:
    """`t3d.config.ComputeConfig` with its choices made.

    Attributes:
        attention: "flex" or "sdpa".
        compiled: torch.compile of the layers and of what follows the LM head.
        hooked: layers gather their weights before they run (FSDP), which is left out of what is compiled.
    """

    attention: Literal["flex", "sdpa"] = "sdpa"
    compiled: bool = False
    hooked: bool = False


PLAIN = Computing()


def computing_of(recipe: Recipe, config: BlockDiffusionConfig, device: torch.device, hooked: bool = False) -> Computing:
    """The fast way where the device has it, unless the recipe says otherwise; `hooked` as in `Computing`.

    Raises:
        RequestError: FlexAttention without CUDA, or for heads that its kernels do not take.
    """
    compute, on_cuda = recipe.compute, device.type == "cuda"
    has_kernels = on_cuda and find_spec("triton") is not None
    head_fits = takes_heads(config)
    if compute.attention == "flex" and not on_cuda:
        raise RequestError("compute.attention flex: has no backward pass without CUDA; use sdpa")
    if compute.attention == "flex" and not head_fits:
        raise RequestError(f"compute.attention flex: does not take heads of {config.head_dim}; use sdpa")
    return Computing(
        attention=compute.attention or ("flex" if has_kernels and head_fits else "sdpa"),
        compiled=has_kernels if compute.compile is None else compute.compile,
        hooked=hooked,
    )


def takes_heads(config: BlockDiffusionConfig) -> bool:
    """Whether FlexAttention's kernels take heads of this size."""
    return config.head_dim >= SMALLEST_HEAD and config.head_dim & (config.head_dim - 1) == 0

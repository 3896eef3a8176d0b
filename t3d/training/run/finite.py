"""Numbers that are not finite are noticed in the step that made them, without making the device wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from t3d.training.parallel.tensors import whole

WATCHED = ("loss", "grad_norm")


class NotFinite(NamedTuple):
    """Which metrics of which optimizer step (1-based) are not finite."""

    step: int
    names: str


@dataclass
class _Look:
    """The watched metrics of a step on their way to the host; `arrived` says when they are there."""

    step: int
    values: dict[str, Tensor]
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Looks at every step's loss and gradient norm: on CUDA a step late, when they have long been there."""

    def __init__(self) -> None:
        self._look: _Look | None = None

    def watch(self, step: int, metrics: Mapping[str, Tensor]) -> NotFinite | None:
        """Have the metrics of a step looked at; returns what was wrong with the step before."""
        found = self.check()
        values = {name: metrics[name].detach().to("cpu", non_blocking=True) for name in WATCHED}
        arrived = None
        if metrics["loss"].is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._look = _Look(step, values, arrived)
        return found

    def check(self) -> NotFinite | None:
        """What is wrong with the last step that was watched; waits for it."""
        look, self._look = self._look, None
        if look is None:
            return None
        if look.arrived is not None:
            look.arrived.synchronize()
        return not_finite(look.step, {name: float(value) for name, value in look.values.items()})


def not_finite(step: int, values: Mapping[str, float]) -> NotFinite | None:
    """The values of a step that are not finite, or None."""
    broken = ", ".join(name for name, value in values.items() if not math.isfinite(value))
    return NotFinite(step, broken) if broken else None


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Whether every entry of every tensor is finite; no array of their size is made."""
    largest = whole(torch.nn.utils.get_total_norm(weights, norm_type=math.inf))
    return bool(torch.isfinite(largest))

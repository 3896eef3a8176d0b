"""Numbers that are not finite: a step whose loss or gradient is not is left out, so that no bad update is ever made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t3d.errors import WorkError
from t3d.training.parallel.tensors import whole

MOST_NAMED = 8
"""Rows in a message."""


class NotFinite(WorkError):
    """Raised in place of an optimizer step; weights, moments and reference are as they were before it.

    Attributes:
        names: what was not finite: loss, grad_norm, or both.
    """

    def __init__(self, step: int, names: Sequence[str]) -> None:
        self.names = ", ".join(names)
        super().__init__(f"step {step}: {self.names} not finite")


@dataclass
class LeftOut:
    """Steps that were left out: all of them, and those since the last one that was made."""

    total: int = 0
    in_a_row: int = 0

    def count(self) -> None:
        """One more."""
        self.total += 1
        self.in_a_row += 1


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Whether every entry of every tensor is finite; no array of their size is made."""
    largest = whole(torch.nn.utils.get_total_norm(weights, norm_type=math.inf))
    return bool(torch.isfinite(largest))


def describe_rows(broken: Sequence[str], every: Sequence[str]) -> str:
    """Which rows of a step to look at, in words; of many the first few.

    Args:
        broken: those whose own loss is not finite.
        every: all of the step.
    """
    if broken:
        return f"in {_named(broken)} ({len(broken)} of {len(every)} rows)"
    return f"though each row's own loss is finite; its rows: {_named(every)}"


def _named(rows: Sequence[str]) -> str:
    more = len(rows) - MOST_NAMED
    return ", ".join(rows[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

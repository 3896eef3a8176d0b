"""Torch's own random numbers in training, as a function of the step: a resumed run draws what the whole one did.

Adapters' dropout and stochastic rounding take them; all other randomness has keys of its own (`t3d.noise`).
"""

from __future__ import annotations

import torch

from t3d.noise import draw_keys

ROUNDING = 0
"""Of the weights: alike in all processes, since those that hold the same ones must round alike."""


def seed_dropout(seed: int, step: int, process_index: int) -> None:
    """Before the forward passes of an optimizer step (1-based): each process drops out inputs of its own."""
    _seed_torch(seed, step, ROUNDING + 1 + process_index)


def seed_rounding(seed: int, step: int) -> None:
    """Before the update of an optimizer step (1-based)."""
    _seed_torch(seed, step, ROUNDING)


def _seed_torch(seed: int, step: int, stream: int) -> None:
    """Torch's default generator of every device."""
    key = draw_keys(*(torch.tensor([number]) for number in (seed, step, stream)))
    torch.manual_seed(int(key))

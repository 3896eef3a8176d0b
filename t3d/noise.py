"""Counter-based randomness: a number for every (seed, position, step, token), computed from these alone.

There is no generator whose state could depend on what else is in the batch. The hash is SplitMix64's finalizer
(Steele, Lea, Flood 2014) in wrapping int64 arithmetic, so that it is the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finalizer, in place, of an int64 tensor of any shape."""
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        value.bitwise_xor_(_shift_right(value, shift)).mul_(factor)
    return value.bitwise_xor_(_shift_right(value, 31))


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """The logical shift that torch lacks for int64: its own repeats the sign bit."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def derive_seeds(seed: int, count: int) -> list[int]:
    """The seeds of requests 0 .. count-1 of a batch that was given one seed, each in [0, 2**63)."""
    key = draw_keys(torch.full((count,), seed), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    return _shift_right(key, 1).tolist()


def draw_keys(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """One key for each draw, from int64 tensors [M] each: request's seed, absolute position, its step. int64 [M]."""
    key = _mix(seed + _GAMMA)
    for counter in (position, step):
        key = _mix(key + (counter + 1) * _GAMMA)
    return key


def gumbel_noise(keys: Tensor, num_tokens: int) -> Tensor:
    """Standard Gumbel noise for every draw and token id.

    Adding it to log-probabilities makes the argmax a draw from them. It is -log of the exponential -log1p(-u),
    which keeps its relative precision where it decides the draw: for u near 0, a 63-bit fraction.

    Args:
        keys: int64 [M] from `draw_keys`.
        num_tokens: V.

    Returns:
        float32 [M, V], finite.
    """
    token_hash = torch.arange(1, num_tokens + 1, device=keys.device) * _GAMMA
    bits = _shift_right(_mix(keys[:, None] + token_hash), 1).bitwise_or_(1)
    uniform = bits.float().mul_(2.0**-63).clamp_max_(1 - 2.0**-24)  # rounding may reach 1, whose log is infinite
    return uniform.neg_().log1p_().neg_().log_().neg_()

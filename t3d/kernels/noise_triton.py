"""The noise of `t3d.noise` inside of kernels.

Shape legend: a block is LANES * U * W tokens as [LANES, U, W], which SHAPE holds: the W of a load are neighbours, and
so are the loads of neighbouring lanes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
"""It and the two below are as in t3d/noise.py."""
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
_LN_2 = tl.constexpr(0.6931471805599453)
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # then there are no library functions


@triton.jit
def block_ids(block: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """Token ids int32 [LANES, U, W]."""
    lanes = tl.arange(0, SHAPE[0]) * SHAPE[2] + block * (SHAPE[0] * SHAPE[1] * SHAPE[2])
    return lanes[:, None, None] + _lane_offsets(SHAPE)


@triton.jit
def _lane_offsets(SHAPE: tl.constexpr) -> tl.tensor:
    """How far a lane's tokens are from its first: int32 [1, U, W]. Constants, for a thread has all of them."""
    vectors = tl.arange(0, SHAPE[1]) * (SHAPE[0] * SHAPE[2])
    return vectors[None, :, None] + tl.arange(0, SHAPE[2])[None, None, :]


@triton.jit
def log2_noise(key: tl.tensor, block: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """log2 of the exponential noise of a block's tokens, for one row's key (uint64). float32 [LANES, U, W]."""
    first_ids = tl.arange(0, SHAPE[0]) * SHAPE[2] + block * (SHAPE[0] * SHAPE[1] * SHAPE[2]) + 1
    counters = key + first_ids.to(tl.uint64) * GAMMA  # one product for a lane: those of the offsets are constants
    return _fast_log2(exponential_noise(counters[:, None, None] + _lane_offsets(SHAPE).to(tl.uint64) * GAMMA))


@triton.jit
def mix(value: tl.tensor) -> tl.tensor:
    """SplitMix64's finalizer of uint64, whose shifts are logical."""
    value = (value ^ (value >> 30)) * _MIX_1
    value = (value ^ (value >> 27)) * _MIX_2
    return value ^ (value >> 31)


@triton.jit
def exponential_noise(counters: tl.tensor) -> tl.tensor:
    """exp(-g) of `gumbel_noise`'s g from key + (token id + 1) * gamma in wrapping uint64. float32, same shape, above 0.

    With u the hash as a fraction, it is -log(1 - u): by a polynomial below a quarter, where u keeps all its digits, and
    by the logarithm above, where 1 - u is exact.
    """
    value = mix(counters)
    high = (value >> 32).to(tl.uint32)
    low = value.to(tl.uint32) | 2  # u is never 0
    # Signed is right where it matters, and faster: the compiler makes a slow conversion of 64 bits of the other.
    uniform = high.to(tl.int32).to(tl.float32) * 2.0**-32 + low.to(tl.float32) * 2.0**-64
    series = 0.14670332 + uniform * 0.33570966  # minimax: relative error 5e-8
    series = 0.25711021 + uniform * series
    series = 0.33293071 + uniform * series
    series = 0.50000727 + uniform * series
    series = uniform * (1.0 + uniform * series)
    rest = 1.0 - (high | 1).to(tl.float32) * 2.0**-32  # the bit stands for all of `low`, to round as `gumbel_noise`
    logarithm = _fast_log2(tl.maximum(rest, 2.0**-24)) * -_LN_2
    return tl.where(high < 2**30, series, logarithm)


@triton.jit
def _fast_log2(x: tl.tensor) -> tl.tensor:
    """log2 to 2 ** -22, relative or (from a half to two) absolute, in one instruction; `tl.log2` takes twenty."""
    if _IS_INTERPRETED:
        return tl.log2(x)
    return libdevice.fast_log2f(x)

"""The elementwise parts of a layer: RMSNorm, whole or its first half, and the gated activation, each one launch.

Shape legend: N tokens, K hidden size, I intermediate size, P partial sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.kernels.skinny_launch import padded_tokens

_SILU_BLOCK = 1024
_NORM_ELEMENTS_PER_WARP = 512  # 16 a lane: two 16-byte loads of a 16-bit dtype


class Normed(NamedTuple):
    """RMSNorm of few tokens before its division, which commutes with the linear layer that follows.

    Attributes:
        scaled: float [N, K], contiguous; `x * norm_weight`, rounded. float16 needs it below 65504.
        square_sums: float32 [P, `padded_tokens(N)`]; their sum over P is `sum(x ** 2)` of each token. Columns beyond N
            are undefined.
    """

    scaled: Tensor
    square_sums: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x ** 2) + eps) * weight` over the last dimension, in float32 with one rounding.

    Args:
        x: float [N, K], rows contiguous.
        weight: float [K].
        eps: added to the mean square.

    Returns:
        float [N, K].
    """
    num_tokens, hidden_size = x.shape
    output = torch.empty(num_tokens, hidden_size, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(hidden_size)
    _rms_norm_kernel[(num_tokens,)](
        x,
        weight,
        output,
        hidden_size,
        x.stride(0),
        eps,
        BLOCK=block,
        num_warps=_norm_warps(block),
    )
    return output


def begin_norm(x: Tensor, weight: Tensor) -> Normed:
    """The half of RMSNorm that precedes `norm_linear`, where no `linear_add_norm_` has done it.

    Args:
        x: float [N, K], N <= 32, rows contiguous.
        weight: float [K], the norm's.

    Returns:
        x as `norm_linear` takes it, with P = 1.
    """
    num_tokens, hidden_size = x.shape
    scaled = torch.empty(num_tokens, hidden_size, dtype=x.dtype, device=x.device)
    square_sums = torch.empty(1, padded_tokens(num_tokens), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(hidden_size)
    _begin_norm_kernel[(num_tokens,)](
        x,
        weight,
        scaled,
        square_sums,
        hidden_size,
        x.stride(0),
        BLOCK=block,
        num_warps=_norm_warps(block),
    )
    return Normed(scaled, square_sums)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, in float32 with one rounding.

    Args:
        gate_up: float [N, 2 I], contiguous; gate, then up.

    Returns:
        float [N, I].
    """
    num_tokens, intermediate_size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(num_tokens, intermediate_size, dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_tokens, triton.cdiv(intermediate_size, _SILU_BLOCK))
    _silu_mul_kernel[grid](
        gate_up,
        output,
        intermediate_size,
        BLOCK=_SILU_BLOCK,
        num_warps=4,
    )
    return output


def _norm_warps(block: int) -> int:
    return min(max(block // _NORM_ELEMENTS_PER_WARP, 1), 16)


@triton.jit
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    output_ptr: tl.tensor,
    hidden_size: tl.tensor,
    x_stride: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_present = columns < hidden_size
    x = tl.load(x_ptr + token * x_stride + columns, mask=is_present, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=is_present, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / hidden_size + eps) * weight
    tl.store(output_ptr + token * hidden_size + columns, normed.to(output_ptr.dtype.element_ty), mask=is_present)


@triton.jit
def _begin_norm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scaled_ptr: tl.tensor,
    square_sums_ptr: tl.tensor,
    hidden_size: tl.tensor,
    x_stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_present = columns < hidden_size
    x = tl.load(x_ptr + token * x_stride + columns, mask=is_present, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=is_present, other=0.0).to(tl.float32)
    scaled = (x * weight).to(scaled_ptr.dtype.element_ty)
    tl.store(scaled_ptr + token * hidden_size + columns, scaled, mask=is_present)
    tl.store(square_sums_ptr + token, tl.sum(x * x, axis=0))


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr: tl.tensor,
    output_ptr: tl.tensor,
    intermediate_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_present = columns < intermediate_size
    gate_ptrs = gate_up_ptr + token * 2 * intermediate_size + columns
    gate = tl.load(gate_ptrs, mask=is_present, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + intermediate_size, mask=is_present, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(output_ptr + token * intermediate_size + columns, product.to(output_ptr.dtype.element_ty), mask=is_present)

"""Linear layers for few tokens, bound by how fast their weights stream from memory.

A program owns a few outputs and all tokens. Each of its warps multiplies its own share of every chunk of inputs (a
batched `tl.dot`, one batch entry a warp): no warp waits for another's sums, no operand is read twice, and the shares
are added once, at the end. No atomics: the same inputs give the same bits. RMSNorm costs no pass over the tokens: the
layer before leaves its products with the norm's weight, which feed `tl.dot` as they are, and partial sums of squares,
whose root divides the outputs at the end.

Shape legend: N tokens, K inputs, O outputs, I outputs of a gated layer, C shares of a chunk (= warps), P partial sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.kernels.layers_triton import Normed
from t3d.kernels.skinny_launch import Config, Kind, choose_config, padded_tokens


def norm_linear(
    x: Normed, eps: float, weight: Tensor, bias: Tensor | None = None, config: Config | None = None
) -> Tensor:
    """RMSNorm's division and a linear layer in one launch: `x.scaled @ weight.T / rms + bias`, all in float32.

    Args:
        x: of N <= 32 tokens and K inputs, from `begin_norm` or `linear_add_norm_`.
        eps: added to the mean square.
        weight: float [O, K], contiguous.
        bias: float [O], contiguous.
        config: other than the table's, to measure it.

    Returns:
        float [N, O].
    """
    return _norm_linear("norm", x, eps, weight, bias, weight.shape[0], config)


def norm_gated_linear(x: Normed, eps: float, weight: Tensor, config: Config | None = None) -> Tensor:
    """RMSNorm's division, the gate and up projections, and `silu(gate) * up`, in one launch.

    Args:
        x: of N <= 32 tokens and K inputs, from `begin_norm` or `linear_add_norm_`.
        eps: added to the mean square.
        weight: float [2 I, K], contiguous; the gate's rows, then the up projection's.
        config: other than the table's, to measure it.

    Returns:
        float [N, I].
    """
    return _norm_linear("gated", x, eps, weight, None, weight.shape[0] // 2, config)


def linear_add_(residual: Tensor, x: Tensor, weight: Tensor, config: Config | None = None) -> Tensor:
    """`residual += x @ weight.T` in place, added in float32 before the one rounding.

    Args:
        residual: float [N, O], contiguous.
        x: float [N, K], N <= 32, rows contiguous.
        weight: float [O, K], contiguous.
        config: other than the table's, to measure it.

    Returns:
        residual.
    """
    _launch_linear_add(residual, x, weight, None, None, None, config or _add_config(x, weight))
    return residual


def linear_add_norm_(
    residual: Tensor, x: Tensor, weight: Tensor, next_norm_weight: Tensor, config: Config | None = None
) -> Normed:
    """`linear_add_`, and in the same launch `begin_norm` of the new residual.

    Args:
        residual, x, weight, config: as in `linear_add_`.
        next_norm_weight: float [O], of the RMSNorm that comes next.

    Returns:
        The new residual, [N, O], as `norm_linear` takes it; a partial sum of squares from each program.
    """
    config = config or _add_config(x, weight)
    num_partials = triton.cdiv(weight.shape[0], config.block_n)
    scaled = torch.empty(*residual.shape, dtype=residual.dtype, device=residual.device)
    square_sums = torch.empty(num_partials, padded_tokens(x.shape[0]), dtype=torch.float32, device=residual.device)
    _launch_linear_add(residual, x, weight, next_norm_weight, scaled, square_sums, config)
    return Normed(scaled, square_sums)


def _norm_linear(
    kind: Kind, x: Normed, eps: float, weight: Tensor, bias: Tensor | None, num_outputs: int, config: Config | None
) -> Tensor:
    num_tokens, num_inputs = x.scaled.shape
    config = config or choose_config(kind, num_tokens, num_outputs, num_inputs, weight.dtype)
    output = torch.empty(num_tokens, num_outputs, dtype=weight.dtype, device=weight.device)
    num_partials = x.square_sums.shape[0]
    _norm_linear_kernel[(triton.cdiv(num_outputs, config.block_n),)](
        x.scaled,
        x.square_sums,
        weight,
        bias,
        output,
        num_tokens,
        num_outputs,
        eps,
        IS_GATED=kind == "gated",
        NUM_PARTIALS=num_partials,
        PADDED_PARTIALS=triton.next_power_of_2(num_partials),
        **_compile_arguments(config, num_inputs, num_tokens),
    )
    return output


def _add_config(x: Tensor, weight: Tensor) -> Config:
    return choose_config("add", x.shape[0], weight.shape[0], weight.shape[1], weight.dtype)


def _launch_linear_add(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    next_norm_weight: Tensor | None,
    scaled: Tensor | None,
    square_sums: Tensor | None,
    config: Config,
) -> None:
    num_tokens, (num_outputs, num_inputs) = x.shape[0], weight.shape
    _linear_add_kernel[(triton.cdiv(num_outputs, config.block_n),)](
        x,
        weight,
        residual,
        next_norm_weight,
        scaled,
        square_sums,
        num_tokens,
        num_outputs,
        x.stride(0),
        **_compile_arguments(config, num_inputs, num_tokens),
    )


def _compile_arguments(config: Config, num_inputs: int, num_tokens: int) -> dict[str, int]:
    """What both kernels are compiled for."""
    return {
        "NUM_INPUTS": num_inputs,
        "BLOCK_M": padded_tokens(num_tokens),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "NUM_SHARES": config.num_warps,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


@triton.jit
def _load_weights(pointers: tl.tensor, inputs: tl.tensor, NUM_INPUTS: tl.constexpr, IS_EVEN: tl.constexpr) -> tl.tensor:
    """A chunk of weights [C, BLOCK_N, BLOCK_K], read once and not kept in the caches. `inputs`: [C, 1, BLOCK_K]."""
    if IS_EVEN:
        chunk = tl.load(pointers, eviction_policy="evict_first")
    else:
        chunk = tl.load(pointers, mask=inputs < NUM_INPUTS, other=0.0, eviction_policy="evict_first")
    return chunk


@triton.jit
def _load_tokens(
    pointers: tl.tensor,
    is_token: tl.tensor,
    inputs: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    IS_EVEN: tl.constexpr,
) -> tl.tensor:
    """A chunk of x [C, BLOCK_M, BLOCK_K], which every program reads. `is_token`: bool [1, BLOCK_M, 1]."""
    if IS_EVEN:
        chunk = tl.load(pointers, mask=is_token, other=0.0, eviction_policy="evict_last")
    else:
        chunk = tl.load(pointers, mask=is_token & (inputs < NUM_INPUTS), other=0.0, eviction_policy="evict_last")
    return chunk


@triton.jit
def _add_product(acc: tl.tensor, weights: tl.tensor, x: tl.tensor) -> tl.tensor:
    """acc [C, BLOCK_N, BLOCK_M] + weights [C, BLOCK_N, BLOCK_K] times x [C, BLOCK_M, BLOCK_K], each share by itself."""
    return tl.dot(weights, tl.permute(x, (0, 2, 1)), acc, input_precision="ieee")


@triton.jit
def _norm_linear_kernel(
    scaled_ptr: tl.tensor,
    square_sums_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,  # None: there is none
    output_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_outputs: tl.tensor,
    eps: tl.tensor,
    IS_GATED: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    PADDED_PARTIALS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_SHARES: tl.constexpr,
) -> None:
    IS_EVEN: tl.constexpr = NUM_INPUTS % (NUM_SHARES * BLOCK_K) == 0
    first, last = tl.program_id(0) * BLOCK_N, num_outputs - 1
    tokens = tl.arange(0, BLOCK_M)
    outputs = first + tl.arange(0, BLOCK_N)
    rows = tl.minimum(outputs, last).to(tl.int64)  # beyond the last: read it again, write nothing
    inputs = tl.arange(0, NUM_SHARES)[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
    is_token = (tokens < num_tokens)[None, :, None]
    x_ptrs = scaled_ptr + tokens[None, :, None] * NUM_INPUTS + inputs
    weight_ptrs = weight_ptr + rows[None, :, None] * NUM_INPUTS + inputs
    up_ptrs = weight_ptr + (rows + num_outputs)[None, :, None] * NUM_INPUTS + inputs
    partials = tl.arange(0, PADDED_PARTIALS)[:, None]
    square_sum_ptrs = square_sums_ptr + partials * BLOCK_M + tokens[None, :]
    is_partial = (partials < NUM_PARTIALS) & (tokens < num_tokens)[None, :]

    square_sums = tl.load(square_sum_ptrs, mask=is_partial, other=0.0)  # here: needed only at the end
    acc = tl.zeros([NUM_SHARES, BLOCK_N, BLOCK_M], tl.float32)
    up_acc = tl.zeros([NUM_SHARES, BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, NUM_INPUTS, NUM_SHARES * BLOCK_K):
        weights = _load_weights(weight_ptrs + start, start + inputs, NUM_INPUTS, IS_EVEN)
        x = _load_tokens(x_ptrs + start, is_token, start + inputs, NUM_INPUTS, IS_EVEN)
        acc = _add_product(acc, weights, x)
        if IS_GATED:
            up_weights = _load_weights(up_ptrs + start, start + inputs, NUM_INPUTS, IS_EVEN)
            up_acc = _add_product(up_acc, up_weights, x)
    inverse_rms = tl.rsqrt(tl.sum(square_sums, axis=0) / NUM_INPUTS + eps)[None, :]
    result = tl.sum(acc, axis=0) * inverse_rms
    if bias_ptr is not None:
        result += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    if IS_GATED:
        result = result * tl.sigmoid(result) * (tl.sum(up_acc, axis=0) * inverse_rms)
    output_ptrs = output_ptr + tokens[None, :] * num_outputs + outputs[:, None]
    is_present = (tokens < num_tokens)[None, :] & (outputs <= last)[:, None]
    tl.store(output_ptrs, result.to(output_ptr.dtype.element_ty), mask=is_present)


@triton.jit
def _linear_add_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    next_norm_weight_ptr: tl.tensor,  # None: no norm comes next, and the two pointers that follow are None too
    scaled_ptr: tl.tensor,
    square_sums_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_outputs: tl.tensor,
    x_stride: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_SHARES: tl.constexpr,
) -> None:
    IS_EVEN: tl.constexpr = NUM_INPUTS % (NUM_SHARES * BLOCK_K) == 0
    first, last = tl.program_id(0) * BLOCK_N, num_outputs - 1
    tokens = tl.arange(0, BLOCK_M)
    outputs = first + tl.arange(0, BLOCK_N)
    rows = tl.minimum(outputs, last).to(tl.int64)  # beyond the last: read it again, write nothing
    inputs = tl.arange(0, NUM_SHARES)[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
    is_token = (tokens < num_tokens)[None, :, None]
    x_ptrs = x_ptr + tokens[None, :, None] * x_stride + inputs
    weight_ptrs = weight_ptr + rows[None, :, None] * NUM_INPUTS + inputs
    at_output = tokens[None, :] * num_outputs + outputs[:, None]
    is_present = (tokens < num_tokens)[None, :] & (outputs <= last)[:, None]

    residual = tl.load(residual_ptr + at_output, mask=is_present, other=0.0)  # here: needed only at the end
    if next_norm_weight_ptr is not None:
        norm_weight = tl.load(next_norm_weight_ptr + rows)
    acc = tl.zeros([NUM_SHARES, BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, NUM_INPUTS, NUM_SHARES * BLOCK_K):
        weights = _load_weights(weight_ptrs + start, start + inputs, NUM_INPUTS, IS_EVEN)
        x = _load_tokens(x_ptrs + start, is_token, start + inputs, NUM_INPUTS, IS_EVEN)
        acc = _add_product(acc, weights, x)
    rounded = (residual.to(tl.float32) + tl.sum(acc, axis=0)).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + at_output, rounded, mask=is_present)
    if next_norm_weight_ptr is not None:
        wide = tl.where(is_present, rounded.to(tl.float32), 0.0)
        scaled = wide * norm_weight.to(tl.float32)[:, None]
        tl.store(scaled_ptr + at_output, scaled.to(scaled_ptr.dtype.element_ty), mask=is_present)
        tl.store(square_sums_ptr + tl.program_id(0) * BLOCK_M + tokens, tl.sum(wide * wide, axis=0))

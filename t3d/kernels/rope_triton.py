"""The Triton kernel of `t3d.kernels.rope`: q/k norm, rotary embedding and the cache's new entries in one launch.

A program owns several heads of one token. Every head is loaded as its two halves, which the rotation pairs; value heads
go through the same arithmetic unused, which costs nothing beside their memory traffic.
Shape legend: N tokens, H key-value heads, G query heads of each, D head dimension.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MANY_TOKENS = 32
"""From here on a program takes more heads (faster on an H200)."""
_FEW_HEADS, _MANY_HEADS = 2, 16
"""Heads a program with few and with many tokens; powers of two."""
_FEW_HEADS_WARPS, _MANY_HEADS_WARPS = 1, 4


def rope_and_store(
    qkv: Tensor,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    places: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """`rope_and_store_reference`, same arguments, in one launch; D and page_size are powers of two, D >= 16."""
    num_tokens = qkv.shape[0]
    _, num_kv_heads, page_size, head_dim = keys.shape
    num_heads = qkv.shape[1] // head_dim
    query = torch.empty((num_tokens, num_heads - 2 * num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    is_many = num_tokens >= _MANY_TOKENS
    heads_per_program = _MANY_HEADS if is_many else _FEW_HEADS
    _rope_and_store_kernel[(num_tokens, -(-num_heads // heads_per_program))](
        qkv,
        q_norm_weight,
        k_norm_weight,
        cos,
        sin,
        positions,
        places,
        query,
        keys,
        values,
        eps,
        QUERY_HEADS=num_heads - 2 * num_kv_heads,
        KV_HEADS=num_kv_heads,
        HALF_DIM=head_dim // 2,
        PAGE_SIZE=page_size,
        HEADS=heads_per_program,
        num_warps=_MANY_HEADS_WARPS if is_many else _FEW_HEADS_WARPS,
    )
    return query


@triton.jit
def _rope_and_store_kernel(
    qkv: tl.tensor,
    q_norm_weight: tl.tensor,  # None: heads are not normed, and k_norm_weight is None too
    k_norm_weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    places: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    eps: tl.tensor,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    """One token's heads program_id(1) * HEADS and following."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, HALF_DIM)
    is_query = (heads < QUERY_HEADS)[:, None]
    is_key = ((heads >= QUERY_HEADS) & (heads < QUERY_HEADS + KV_HEADS))[:, None]
    is_value = ((heads >= QUERY_HEADS + KV_HEADS) & (heads < QUERY_HEADS + 2 * KV_HEADS))[:, None]

    source = qkv + (token * (QUERY_HEADS + 2 * KV_HEADS) + heads)[:, None] * (2 * HALF_DIM) + dims[None, :]
    low = tl.load(source, mask=is_query | is_key | is_value, other=0.0)
    high = tl.load(source + HALF_DIM, mask=is_query | is_key | is_value, other=0.0)

    place = tl.load(places + token)
    kv_head = tl.where(heads >= QUERY_HEADS + KV_HEADS, heads - QUERY_HEADS - KV_HEADS, heads - QUERY_HEADS)
    page = (place // PAGE_SIZE).to(tl.int64)
    cell = ((page * KV_HEADS + kv_head) * PAGE_SIZE + place % PAGE_SIZE)[:, None] * (2 * HALF_DIM) + dims[None, :]
    tl.store(values + cell, low, mask=is_value)
    tl.store(values + cell + HALF_DIM, high, mask=is_value)

    low_wide = low.to(tl.float32)
    high_wide = high.to(tl.float32)
    if q_norm_weight is not None:
        mean_square = tl.sum(low_wide * low_wide + high_wide * high_wide, axis=1) / (2 * HALF_DIM)
        inverse_rms = tl.rsqrt(mean_square + eps)[:, None]
        low_wide = low_wide * inverse_rms * _norm_weight(q_norm_weight, k_norm_weight, dims, is_query)
        high_wide = high_wide * inverse_rms * _norm_weight(q_norm_weight, k_norm_weight, dims + HALF_DIM, is_query)

    angle = tl.load(positions + token).to(tl.int64) * HALF_DIM + dims
    cosine = tl.load(cos + angle)[None, :]
    sine = tl.load(sin + angle)[None, :]
    low_rotated = (low_wide * cosine - high_wide * sine).to(qkv.dtype.element_ty)
    high_rotated = (high_wide * cosine + low_wide * sine).to(qkv.dtype.element_ty)
    tl.store(keys + cell, low_rotated, mask=is_key)
    tl.store(keys + cell + HALF_DIM, high_rotated, mask=is_key)
    target = query + (token * QUERY_HEADS + heads)[:, None] * (2 * HALF_DIM) + dims[None, :]
    tl.store(target, low_rotated, mask=is_query)
    tl.store(target + HALF_DIM, high_rotated, mask=is_query)


@triton.jit
def _norm_weight(q_norm_weight: tl.tensor, k_norm_weight: tl.tensor, dims: tl.tensor, is_query: tl.tensor) -> tl.tensor:
    """float32 [HEADS, dims]: the queries' weight in rows of query heads, else the keys'."""
    query_weight = tl.load(q_norm_weight + dims).to(tl.float32)[None, :]
    key_weight = tl.load(k_norm_weight + dims).to(tl.float32)[None, :]
    return tl.where(is_query, query_weight, key_weight)

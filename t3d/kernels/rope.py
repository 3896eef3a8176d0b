"""What stands between the fused projection and attention: q/k norm, rotary embedding, the KV cache's new entries.

Plain torch: the meaning of `t3d.kernels.rope_triton`, and what runs where there is no GPU.
Shape legend: N tokens, H key-value heads, G query heads of each, D head dimension; pages of the cache hold `page_size`
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_and_store_reference(
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
    """Norm and rotate each query and key head, store keys and values into the cache, return the queries.

    Qwen3's order: RMSNorm over a head's D numbers (Llama and Qwen2 have none), then rotary embedding of its halves,
    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) (RoFormer, arXiv:2104.09864, section 3.4.2, with paired halves).
    All in float32 (float64 stays), rounded once.

    Args:
        qkv: float [N, (G * H + 2 * H) * D], contiguous: query heads, key heads, value heads.
        q_norm_weight, k_norm_weight: float [D]; None, both of them, where heads are not normed.
        eps: added to the mean square.
        cos, sin: float32 [max_positions, D / 2].
        positions: int32 [N], absolute.
        places: int32 [N], page * page_size + offset of each token in the cache.
        keys, values: [num_pages, H, page_size, D], contiguous, written in place at `places`.

    Returns:
        [N, G * H, D], `qkv`'s dtype.
    """
    _, num_kv_heads, page_size, head_dim = keys.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    query, key, value = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    rotation = cos[positions][:, None], sin[positions][:, None]
    pages, offsets = places // page_size, places % page_size
    keys[pages, :, offsets] = _norm_and_rotate(key, k_norm_weight, eps, *rotation)
    values[pages, :, offsets] = value
    return _norm_and_rotate(query, q_norm_weight, eps, *rotation)


def _norm_and_rotate(heads: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """RMSNorm, if any, then rotary embedding, of float [N, heads, D]; `cos` and `sin` are [N, 1, D / 2]."""
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    if weight is not None:
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight
    low, high = wide.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(heads.dtype)

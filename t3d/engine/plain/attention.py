"""The engine's attention function: grouped queries against the KV cache as it lies.

transformers' "sdpa" copies every key and value once per query head of its group when there is a mask. Decoding has few
queries and many keys, so here the queries of a group are laid behind each other instead: same sums, no copies.
Shape legend: N rows, H key-value heads, G query heads a group, Q queries, S keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.models import BlockDiffusionModel
from t3d.models.attention import as_attention_mask, block_causal_mask

GROUPED = "t3d_grouped"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' layers call.

    Args:
        module: the layer; not needed.
        query: float [N, H * G, Q, D].
        key, value: float [N, H, S, D].
        attention_mask: float [N, 1, G * Q, S], added to the scores.
        scaling: of the scores.

    Returns:
        float [N, Q, H * G, D].
    """
    num_rows, num_heads, num_queries, head_dim = query.shape
    grouped = query.reshape(num_rows, key.shape[1], -1, head_dim)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(num_rows, num_heads, num_queries, head_dim).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_attention)


@contextmanager
def grouped(model: BlockDiffusionModel) -> Iterator[None]:
    """Run a model that was loaded with "sdpa" with grouped attention; others keep their own."""
    own = model.config._attn_implementation
    if own == "sdpa":
        model.config._attn_implementation = GROUPED
    try:
        yield
    finally:
        model.config._attn_implementation = own


def decoding_mask(model: BlockDiffusionModel, query_positions: Tensor, num_keys: int, block_size: int) -> Tensor:
    """The block-causal mask over keys 0 .. num_keys-1, as the model's present attention function takes it.

    Args:
        query_positions: int64 [N, Q].
        num_keys: S.

    Returns:
        additive, float [N, 1, G * Q, S] for grouped attention, else [N, 1, Q, S].
    """
    config = model.config
    if config._attn_implementation == GROUPED:
        query_positions = query_positions.repeat(1, config.num_attention_heads // config.num_key_value_heads)
    keys = torch.arange(num_keys, device=query_positions.device)
    sees = block_causal_mask(query_positions, keys, block_size)
    return as_attention_mask(sees, model.dtype)

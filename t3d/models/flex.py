"""FlexAttention for training on CUDA: attention that costs what is seen, not the square of the row.

In a packed row each token sees two stretches of it: of the clean tokens of its document, and of its own noisy block.
From these the kernel's tiles are sorted into skipped, seen whole, and seen in part; once a batch, for every layer of
student and reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.models.attention import TILE

FLEX = "t3d_flex"
"""The name under which transformers finds `flex_attention_forward`."""
SMALLEST_HEAD = 16
"""The kernels take head sizes that are powers of two from here on."""


def span_block_mask(spans: Tensor) -> BlockMask:
    """The pattern in which each token sees two stretches of its row, as FlexAttention takes it.

    Args:
        spans: int32 [N, S, 2, 2] first place and place after the last of each stretch; the two do not overlap. S must
            be a multiple of `TILE`.
    """
    # each [N, S] and contiguous, as the kernel loads them
    clean_start, clean_end, noisy_start, noisy_end = spans.flatten(2).movedim(-1, 0).contiguous().unbind()

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        clean = (key >= clean_start[row, query]) & (key < clean_end[row, query])
        noisy = (key >= noisy_start[row, query]) & (key < noisy_end[row, query])
        return clean | noisy

    length = spans.shape[1]
    seen = _pairs_by_tile(spans)
    whole = seen == TILE * TILE
    return BlockMask.from_kv_blocks(
        *_listed((seen > 0) & ~whole), *_listed(whole), BLOCK_SIZE=TILE, mask_mod=mask_mod, seq_lengths=(length, length)
    )


def _pairs_by_tile(spans: Tensor) -> Tensor:
    """int32 [N, S / TILE, S / TILE]: in how many of a tile's pairs the query sees the key."""
    num_rows, length = spans.shape[:2]
    starts, ends = spans.unbind(-1)  # [N, S, 2]
    first = torch.arange(0, length, TILE, device=spans.device, dtype=torch.int32)
    overlap = torch.minimum(ends[..., None], first + TILE) - torch.maximum(starts[..., None], first)
    by_query = overlap.clamp_(min=0).sum(dim=2, dtype=torch.int32)  # [N, S, S / TILE]: the stretches do not overlap
    return by_query.view(num_rows, length // TILE, TILE, -1).sum(dim=2, dtype=torch.int32)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool [N, Q, K] -> how many tiles of each row of tiles (int32 [N, 1, Q]) and which, first (int32 [N, 1, Q, K])."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(dim=-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


def flex_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; a dense mask, as other callers of the model have it, goes to SDPA.

    Args:
        module: the layer's attention.
        query: float [N, heads, S, D]; key, value: [N, key heads, S, D].
        attention_mask: of `span_block_mask`.
        scaling: of the scores.

    Returns:
        float [N, S, heads, D] in the values' dtype, and no weights.
    """
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    # outside a compiled layer the kernel itself must be compiled; the CPU computes the pattern densely
    in_kernel = query.device.type == "cuda" and not torch.compiler.is_compiling()
    attend = _compiled_flex_attention if in_kernel else flex_attention
    # queries and keys may come in float32 from norms whose weights are
    output = attend(
        query.to(value.dtype), key.to(value.dtype), value, block_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


_compiled_flex_attention = torch.compile(flex_attention)
ALL_ATTENTION_FUNCTIONS.register(FLEX, flex_attention_forward)

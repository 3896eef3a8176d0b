"""Block-causal attention of tiles of queries over a paged KV cache.

Plain torch: the meaning of `t3d.kernels.attention_triton`, and what runs where there is no GPU.
Shape legend: N tokens, H key-value heads, G query heads of each, D head dimension, T tiles, P = 2 * half places of a
tile, S positions that a row of the page table spans.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def paged_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Tensor,
    page_table: Tensor,
    block_size: int,
    scale: float,
    half: int,
) -> Tensor:
    """A query at position p sees its slot's keys at positions < (p // block_size + 1) * block_size.

    A tile is P places at consecutive positions of one slot, in two halves whose tokens may lie apart in `query`: in
    decoding, the block that is being committed and the active one. It gathers all S positions of each tile's slot;
    hand over a `page_table` no wider than needed.

    Args:
        query: float [N, G * H, D].
        keys, values: float [num_pages, H, page_size, D]; position p of slot s lies in page
            page_table[s, p // page_size] at offset p % page_size. What lies beyond a tile's last visible key is not
            read (it may be NaN).
        tiles: int32 [T, 5]: slot; position of place 0, so that place i is at position + i (negative where the first
            half is absent); row of `query` of place 0, the first half's tokens following, or -1 = this half is absent;
            the same of place `half`; number of places, later ones being absent.
        page_table: int32 [num_slots, max_pages].
        block_size: B.
        scale: of the scores.
        half: places of half a tile.

    Returns:
        [N, G * H, D], `query`'s dtype; rows that no tile covers are undefined.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_tiles, num_kv_heads, group = tiles.shape[0], keys.shape[1], num_heads // keys.shape[1]
    tokens, positions, is_present = _tile_places(tiles, half)
    visible_end = torch.where(is_present, (positions // block_size + 1) * block_size, 0)
    pages = page_table[tiles[:, 0].clamp_min(0)]
    key_end = visible_end.amax(dim=1)
    grouped = query[tokens].view(num_tiles, 2 * half, num_kv_heads, group, head_dim).transpose(1, 2)
    key, value = _gather_pages(keys, pages, key_end), _gather_pages(values, pages, key_end)
    sees = torch.arange(key.shape[2], device=query.device) < visible_end.repeat_interleave(group, dim=1)[:, :, None]
    attended = scaled_dot_product_attention(grouped.flatten(2, 3), key, value, attn_mask=sees[:, None], scale=scale)
    attended = attended.view(num_tiles, num_kv_heads, 2 * half, group, head_dim).transpose(1, 2)
    output = query.new_empty(num_tokens + 1, num_heads, head_dim)  # the last row takes what absent places yield
    output[torch.where(is_present, tokens, num_tokens)] = attended.reshape(num_tiles, 2 * half, num_heads, head_dim)
    return output[:num_tokens]


def _tile_places(tiles: Tensor, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row of the query (0 where absent), position and presence of each place: int64, int64 and bool [T, P]."""
    _, position, first, second, end = tiles.long()[:, :, None].unbind(dim=1)
    place = torch.arange(2 * half, device=tiles.device)
    start = torch.where(place < half, first, second)
    is_present = (start >= 0) & (place < end)
    return torch.where(is_present, start + place % half, 0), position + place, is_present


def _gather_pages(cache: Tensor, pages: Tensor, key_end: Tensor) -> Tensor:
    """The entries of each tile's slot, zero from `key_end` on, where stale NaN would leak: [T, H, S, D].

    Args:
        cache: float [num_pages, H, page_size, D].
        pages: int32 [T, max_pages].
        key_end: int64 [T], first position that no query of the tile sees.
    """
    gathered = cache[pages].transpose(1, 2).flatten(2, 3)
    is_visible = torch.arange(gathered.shape[2], device=cache.device) < key_end[:, None]
    return gathered.masked_fill(~is_visible[:, None, :, None], 0)

"""The Triton kernel of `t3d.kernels.attention`: paged, block-causal attention with the context split over programs.

All G query heads of a key-value head share a program, so that each key is read once for a tile. The keys are walked in
key tiles that lie in one page each, with an online softmax in float32 (FlashAttention-2, arXiv:2307.08691,
algorithm 1). Where there are too few tiles of queries to fill the GPU, several programs share a tile's keys
(Flash-Decoding), and the last of them to arrive combines what all have left in the workspace: no second launch.
Shape legend: N tokens, H key-value heads, G query heads of each, D head dimension, T tiles, R rows of a program: a
tile's places times the group, both rounded up to powers of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.kernels.attention_launch import AttentionWorkspace, LaunchConfig, launch_config, next_power_of_2, program_rows

_HIDDEN = tl.constexpr(-1.0e30)
"""Score of a hidden key, log2 units: finite, so that a row which sees nothing yet gets no NaN, only weight 0 later."""
_LOG2_E = 1.4426950408889634


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Tensor,
    page_table: Tensor,
    block_size: int,
    scale: float,
    half: int,
    num_splits: int,
    workspace: AttentionWorkspace,
    config: LaunchConfig | None = None,
) -> Tensor:
    """`paged_attention_reference` in one launch; its arguments, and those below.

    Args:
        query: float [N, G * H, D], contiguous; D is a power of two, at least 16.
        keys, values: [num_pages, H, page_size, D], `query`'s dtype, contiguous; page_size is a power of two, at least
            16.
        tiles: int32 [T, 5], contiguous.
        page_table: int32 [num_slots, max_pages], rows contiguous.
        block_size: B.
        scale: of the scores.
        half: places of half a tile.
        num_splits: programs to share each tile's keys, see `choose_splits`.
        workspace: made for the same `half`, G and D; not touched where `num_splits` is 1.
        config: how to compile, when measuring; otherwise the regime's own.

    Returns:
        [N, G * H, D], `query`'s dtype; rows that no tile covers are undefined.

    Raises:
        ValueError: the workspace is too small for so many splits.
    """
    _, num_kv_heads, page_size, head_dim = keys.shape
    num_tiles, group = tiles.shape[0], query.shape[1] // num_kv_heads
    if num_splits > 1 and num_tiles * num_kv_heads * num_splits > workspace.max_programs:
        raise ValueError(
            f"{num_tiles} tiles x {num_kv_heads} heads x {num_splits} splits exceed the workspace's "
            f"{workspace.max_programs} programs: take num_splits from choose_splits"
        )
    rows = program_rows(half, group)
    config = config or launch_config(rows, query.dtype, num_tiles * num_kv_heads * num_splits)
    output = torch.empty_like(query)
    _paged_attention_kernel[(num_tiles, num_kv_heads, num_splits)](
        query,
        keys,
        values,
        tiles,
        page_table,
        output,
        workspace.partials,
        workspace.log_sums,
        workspace.counters,
        scale * _LOG2_E,
        page_table.stride(0),
        KV_HEADS=num_kv_heads,
        GROUP=group,
        PADDED_GROUP=next_power_of_2(group),
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_SIZE=block_size,
        HALF=half,
        ROWS=rows,
        KEYS=min(config.keys_per_tile, page_size),
        IS_SPLIT=num_splits > 1,
        SKIPS_MASKS=config.skips_masks,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return output


@triton.jit
def _paged_attention_kernel(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tiles: tl.tensor,
    page_table: tl.tensor,
    output: tl.tensor,
    partials: tl.tensor,
    log_sums: tl.tensor,
    counters: tl.tensor,
    scale: tl.tensor,
    max_pages: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    SKIPS_MASKS: tl.constexpr,
) -> None:
    """One split of one tile and key-value head: program ids 2, 0 and 1. `scale` includes log2(e), for exp2."""
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tiles + tile * 5)
    position = tl.load(tiles + tile * 5 + 1)
    first = tl.load(tiles + tile * 5 + 2)
    second = tl.load(tiles + tile * 5 + 3)
    end = tl.load(tiles + tile * 5 + 4)
    first_place = tl.where(first >= 0, 0, HALF)
    last_place = tl.minimum(end, tl.where(second >= 0, 2 * HALF, HALF)) - 1
    if last_place < first_place:
        return
    key_end = _block_end(position + last_place, BLOCK_SIZE)
    num_key_tiles = tl.cdiv(key_end, KEYS)
    share = tl.cdiv(num_key_tiles, tl.num_programs(2))
    start = split * share
    if start >= num_key_tiles:
        return
    stop = tl.minimum(start + share, num_key_tiles)

    row = tl.arange(0, ROWS)
    place = row // PADDED_GROUP
    token = tl.where(place < HALF, first + place, second + place - HALF).to(tl.int64)
    query_head = head * GROUP + row % PADDED_GROUP
    is_present = ((place >= first_place) & (place <= last_place) & (row % PADDED_GROUP < GROUP))[:, None]
    dims = tl.arange(0, HEAD_DIM)
    at_query = ((token * (KV_HEADS * GROUP) + query_head) * HEAD_DIM)[:, None] + dims[None, :]
    queries = tl.load(query + at_query, mask=is_present, other=0.0)
    visible_end = _block_end(position + place, BLOCK_SIZE)

    page_row = page_table + slot.to(tl.int64) * max_pages
    head_keys = keys + head * (PAGE_SIZE * HEAD_DIM)
    head_values = values + head * (PAGE_SIZE * HEAD_DIM)
    row_max = tl.full([ROWS], _HIDDEN, dtype=tl.float32)
    row_sum = tl.zeros([ROWS], dtype=tl.float32)
    weighted = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    if SKIPS_MASKS:
        whole_end = _block_end(position + first_place, BLOCK_SIZE) // KEYS
        whole_stop = tl.minimum(tl.maximum(whole_end, start), stop)
        row_max, row_sum, weighted = _attend(
            queries, head_keys, head_values, page_row, start, whole_stop, visible_end, key_end, scale,
            row_max, row_sum, weighted, KV_HEADS, PAGE_SIZE, KEYS, HEAD_DIM, False,
        )  # fmt: skip
        start = whole_stop
    row_max, row_sum, weighted = _attend(
        queries, head_keys, head_values, page_row, start, stop, visible_end, key_end, scale,
        row_max, row_sum, weighted, KV_HEADS, PAGE_SIZE, KEYS, HEAD_DIM, True,
    )  # fmt: skip
    attended = weighted / row_sum[:, None]
    if IS_SPLIT:
        group_id = tile * KV_HEADS + head
        partial_row = (group_id.to(tl.int64) * tl.num_programs(2)) * ROWS + row
        at_partial = partial_row[:, None] * HEAD_DIM + dims[None, :]
        tl.store(log_sums + partial_row + split * ROWS, row_max + tl.log2(row_sum))
        tl.store(partials + at_partial + split * (ROWS * HEAD_DIM), attended, mask=is_present)
        tl.debug_barrier()  # all of this program's stores before its arrival
        num_shares = tl.cdiv(num_key_tiles, share)
        if tl.atomic_add(counters + group_id, 1, sem="acq_rel") == num_shares - 1:
            combined = _combine(partials + at_partial, log_sums + partial_row, num_shares, is_present, ROWS, HEAD_DIM)
            tl.store(output + at_query, combined.to(output.dtype.element_ty), mask=is_present)
            tl.store(counters + group_id, 0)  # for the next launch, or a graph's next replay
    else:
        tl.store(output + at_query, attended.to(output.dtype.element_ty), mask=is_present)


@triton.jit
def _block_end(position: tl.tensor, BLOCK_SIZE: tl.constexpr) -> tl.tensor:
    """First position after the block of a position; meaningless, but harmless, for absent negative ones."""
    return (position // BLOCK_SIZE + 1) * BLOCK_SIZE


@triton.jit
def _attend(
    queries: tl.tensor,
    head_keys: tl.tensor,
    head_values: tl.tensor,
    page_row: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    visible_end: tl.tensor,
    key_end: tl.tensor,
    scale: tl.tensor,
    row_max: tl.tensor,
    row_sum: tl.tensor,
    weighted: tl.tensor,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    IS_MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax over key tiles start .. stop-1: the rows' maximum, sum of exponentials and weighted values."""
    columns = tl.arange(0, KEYS)
    in_tile = columns[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    page = tl.load(page_row + start * KEYS // PAGE_SIZE, mask=start < stop, other=0)
    for index in range(start, stop):
        next_page = tl.load(page_row + (index + 1) * KEYS // PAGE_SIZE, mask=index + 1 < stop, other=0)
        tile_start = page.to(tl.int64) * (KV_HEADS * PAGE_SIZE * HEAD_DIM) + (index * KEYS % PAGE_SIZE) * HEAD_DIM
        key_position = index * KEYS + columns
        if IS_MASKED:  # stale entries may be NaN, and 0 * NaN would leak
            is_stored = (key_position < key_end)[:, None]
            key = tl.load(head_keys + tile_start + in_tile, mask=is_stored, other=0.0)
            value = tl.load(head_values + tile_start + in_tile, mask=is_stored, other=0.0)
        else:
            key = tl.load(head_keys + tile_start + in_tile)
            value = tl.load(head_values + tile_start + in_tile)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        if IS_MASKED:
            scores = tl.where(key_position[None, :] < visible_end[:, None], scores, _HIDDEN)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        rescale = tl.exp2(row_max - new_max)
        weights = tl.exp2(scores - new_max[:, None])
        row_sum = row_sum * rescale + tl.sum(weights, axis=1)
        weighted = tl.dot(weights.to(value.dtype), value, weighted * rescale[:, None], input_precision="ieee")
        row_max = new_max
        page = next_page
    return row_max, row_sum, weighted


@triton.jit
def _combine(
    partials: tl.tensor,
    log_sums: tl.tensor,
    num_shares: tl.tensor,
    is_present: tl.tensor,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """The partial results of a tile's programs, weighted by their sums of exponentials: float32 [ROWS, HEAD_DIM].

    Args are pointers to the first program's [ROWS, HEAD_DIM] and [ROWS]; the others' follow.
    """
    total_max = tl.full([ROWS], _HIDDEN, dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    combined = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    for share in tl.range(0, num_shares, loop_unroll_factor=4):  # so that several loads are in flight
        log_sum = tl.load(log_sums + share * ROWS)
        partial = tl.load(partials + share * (ROWS * HEAD_DIM), mask=is_present, other=0.0)
        new_max = tl.maximum(total_max, log_sum)
        rescale = tl.exp2(total_max - new_max)
        weight = tl.exp2(log_sum - new_max)
        total = total * rescale + weight
        combined = combined * rescale[:, None] + partial * weight[:, None]
        total_max = new_max
    return combined / total[:, None]

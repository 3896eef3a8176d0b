"""`begin` of `t3d.engine.continuous.steps` in one Triton launch.

A program's work is tiny and a launch is not: what depends on the rows before its own, every program counts for itself.
Shape legend: n rows of a step, B block size, c commit places, N = (n + c) * B tokens of its forward, m sampling places;
R = ROWS and P = POSITIONS, n and B rounded up to powers of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.engine.continuous.state import Field, State
from t3d.engine.continuous.steps import Work
from t3d.kernels.noise_triton import GAMMA, mix

_SEED = tl.constexpr(int(Field.SEED))
_IS_RUNNING = tl.constexpr(int(Field.IS_RUNNING))
_BLOCK_START = tl.constexpr(int(Field.BLOCK_START))
_NUM_STEPS = tl.constexpr(int(Field.NUM_STEPS))
_HAS_UNCOMMITTED = tl.constexpr(int(Field.HAS_UNCOMMITTED))
_NUM_FIELDS = tl.constexpr(len(Field))

_MIN_LANES = 16  # of a power-of-two extent
_CELLS_AT_ONCE = 4096  # of [rows, positions] that a program of `begin` reads at once
_CELLS_PER_WARP = 1024


def begin(state: State, slots: Tensor, page_table: Tensor, page_size: int, commits: int, samples: int) -> Work:
    """`steps.begin`, same arguments; tokens and keys of padding are 0."""
    num_rows, block_size, device = len(slots), state.block_size, slots.device
    num_blocks = num_rows + commits
    work = Work(
        slots=slots,
        takes_part=torch.empty(num_rows, dtype=torch.bool, device=device),
        tokens=torch.empty(num_blocks * block_size, dtype=torch.int64, device=device),
        positions=torch.empty(num_blocks * block_size, dtype=torch.int32, device=device),
        places=torch.empty(num_blocks * block_size, dtype=torch.int32, device=device),
        tiles=torch.empty((num_rows, 5), dtype=torch.int32, device=device),
        samples=torch.empty((num_rows, block_size), dtype=torch.int64, device=device),
        sample_tokens=torch.empty(samples, dtype=torch.int64, device=device),
        sample_slots=torch.empty(samples, dtype=torch.int64, device=device),
        sample_keys=torch.empty(samples, dtype=torch.int64, device=device),
        num_samples=torch.empty(1, dtype=torch.int32, device=device),
    )
    rows, positions = _lanes(num_rows), _lanes(block_size)
    columns = min(positions, max(_CELLS_AT_ONCE // rows, 1))
    _begin_kernel[(num_blocks,)](
        state.numbers,
        state.previous,
        state.active,
        slots,
        page_table,
        work.takes_part,
        work.tokens,
        work.positions,
        work.places,
        work.tiles,
        work.samples,
        work.sample_tokens,
        work.sample_slots,
        work.sample_keys,
        work.num_samples,
        num_rows,
        commits,
        samples,
        page_table.stride(0),
        state.idle_slot,
        state.mask_token_id,
        PAGE_SIZE=page_size,
        BLOCK_SIZE=block_size,
        POSITIONS=positions,
        ROWS=rows,
        COLUMNS=columns,
        SHARE=_lanes(-(-samples // num_blocks)),
        num_warps=1 if rows * columns <= _CELLS_PER_WARP else 4,
    )
    return work


def _lanes(extent: int) -> int:
    return max(1 << (extent - 1).bit_length(), _MIN_LANES)


# No value of these numbers may make a variant of its own: captures differ in all of them.
@triton.jit(
    do_not_specialize=["num_rows", "num_commits", "max_samples", "pages_per_slot", "idle_slot", "mask_token_id"]
)
def _begin_kernel(
    numbers: tl.tensor,
    previous: tl.tensor,
    active: tl.tensor,
    slots: tl.tensor,
    page_table: tl.tensor,
    takes_part: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    places: tl.tensor,
    tiles: tl.tensor,
    samples: tl.tensor,
    sample_tokens: tl.tensor,
    sample_slots: tl.tensor,
    sample_keys: tl.tensor,
    num_samples: tl.tensor,
    num_rows: tl.tensor,
    num_commits: tl.tensor,
    max_samples: tl.tensor,
    pages_per_slot: tl.tensor,
    idle_slot: tl.tensor,
    mask_token_id: tl.tensor,
    PAGE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARE: tl.constexpr,
) -> None:
    """One block of the forward: a row's active one, or from n on one that rides along; and a share of the padding."""
    block = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    offsets = tl.arange(0, POSITIONS)
    in_block = offsets < BLOCK_SIZE
    is_served, commit_place, num_drawn = _admit(
        numbers, active, slots, num_rows, num_commits, max_samples, mask_token_id, BLOCK_SIZE, ROWS, COLUMNS
    )

    # Whose block it is: `row` is 0 where nobody has this commit place.
    is_commit = block >= num_rows
    is_mine = tl.where(is_commit, commit_place == block - num_rows, rows == block)
    row = tl.sum(tl.where(is_mine, rows, 0), axis=0)
    is_used = tl.sum(tl.where(is_mine, is_served, 0), axis=0) > 0
    slot = tl.load(slots + row)
    start = tl.load(numbers + slot * _NUM_FIELDS + _BLOCK_START)

    is_real = in_block & is_used
    cells = slot * BLOCK_SIZE + offsets
    finished = tl.load(previous + cells, mask=is_real & is_commit, other=0)
    token = tl.load(active + cells, mask=is_real & (block < num_rows), other=0) + finished
    position = tl.where(is_real, start + offsets - tl.where(is_commit, BLOCK_SIZE, 0), 0)
    page = tl.load(page_table + slot * pages_per_slot + position // PAGE_SIZE, mask=is_real, other=0).to(tl.int64)
    at = block * BLOCK_SIZE + offsets
    tl.store(tokens + at, token, mask=in_block)
    tl.store(positions + at, position.to(tl.int32), mask=in_block)
    tl.store(places + at, (page * PAGE_SIZE + position % PAGE_SIZE).to(tl.int32), mask=in_block)

    if block < num_rows:
        tl.store(takes_part + block, is_used)
        own_commit = tl.sum(tl.where(rows == block, commit_place, 0), axis=0)
        tile = tiles + block * 5
        tl.store(tile, slot.to(tl.int32))
        tl.store(tile + 1, (start - BLOCK_SIZE).to(tl.int32))
        tl.store(tile + 2, tl.where(own_commit >= 0, (num_rows + own_commit) * BLOCK_SIZE, -1))
        tl.store(tile + 3, tl.where(is_used, block * BLOCK_SIZE, -1))
        tl.store(tile + 4, tl.where(is_used, 2 * BLOCK_SIZE, 0))

        is_drawn = is_real & (token == mask_token_id)
        draws_before = tl.sum(tl.where(rows < block, num_drawn, 0), axis=0)
        place = draws_before + tl.cumsum(is_drawn.to(tl.int32), 0) - 1
        seed = tl.load(numbers + slot * _NUM_FIELDS + _SEED)
        step = tl.load(numbers + slot * _NUM_FIELDS + _NUM_STEPS)
        tl.store(samples + at, tl.where(is_drawn, place, -1).to(tl.int64), mask=in_block)
        tl.store(sample_tokens + place, at.to(tl.int64), mask=is_drawn)
        tl.store(sample_slots + place, slot, mask=is_drawn)
        tl.store(sample_keys + place, _draw_key(seed, position, step), mask=is_drawn)

    # What no row draws.
    total = tl.sum(num_drawn, axis=0)
    tl.store(num_samples, total, mask=block == 0)
    padding = block * SHARE + tl.arange(0, SHARE)
    is_padding = (padding >= total) & (padding < max_samples)
    nothing = tl.zeros([SHARE], dtype=tl.int64)
    tl.store(sample_tokens + padding, nothing, mask=is_padding)
    tl.store(sample_slots + padding, nothing + idle_slot, mask=is_padding)
    tl.store(sample_keys + padding, nothing, mask=is_padding)


@triton.jit
def _admit(
    numbers: tl.tensor,
    active: tl.tensor,
    slots: tl.tensor,
    num_rows: tl.tensor,
    num_commits: tl.tensor,
    max_samples: tl.tensor,
    mask_token_id: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Which rows take part (0 or 1), their commit places (-1: none), how many positions they draw: int32 [R] each."""
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    slot = tl.load(slots + rows, mask=is_row, other=0)
    fields = numbers + slot * _NUM_FIELDS
    is_running = (tl.load(fields + _IS_RUNNING, mask=is_row, other=0) > 0).to(tl.int32)
    must_commit = (tl.load(fields + _HAS_UNCOMMITTED, mask=is_row, other=0) > 0).to(tl.int32) * is_running
    num_masked = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, BLOCK_SIZE, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        is_cell = is_row[:, None] & (columns < BLOCK_SIZE)[None, :]
        tokens = tl.load(active + slot[:, None] * BLOCK_SIZE + columns[None, :], mask=is_cell, other=-1)
        num_masked += tl.sum((tokens == mask_token_id).to(tl.int32), axis=1)
    num_masked = num_masked * is_running
    commits_so_far = tl.cumsum(must_commit, 0)
    has_room = (commits_so_far * must_commit <= num_commits) & (tl.cumsum(num_masked, 0) <= max_samples)
    is_served = is_running * has_room.to(tl.int32)
    commit_place = tl.where(must_commit * is_served > 0, commits_so_far - 1, -1)
    return is_served, commit_place, num_masked * is_served


@triton.jit
def _draw_key(seed: tl.tensor, position: tl.tensor, step: tl.tensor) -> tl.tensor:
    """`t3d.noise.draw_keys` of int64 tensors that broadcast; uint64 inside, for its shifts are logical."""
    key = mix(seed.to(tl.uint64) + GAMMA)
    key = mix(key + (position + 1).to(tl.uint64) * GAMMA)
    return mix(key + (step + 1).to(tl.uint64) * GAMMA).to(tl.int64)

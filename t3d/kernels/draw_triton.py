"""From logits to one drawn token per row, its probability and the entropy, in one pass and one launch.

It means `t3d.engine.sampling.draw_candidates` without top-k and top-p. A row's vocabulary is split over programs. Every
lane keeps the sums of a softmax relative to the largest logit that it has met, and remembers in which block the race
that decides the draw had its leader. Lanes are put together at the end of a share; the last program of a row to finish
puts the shares together, and looks at the winner's block once more for the token.

The race: probability over exponential noise, largest wins. Its logarithm is log-probability plus Gumbel noise, which
`draw_candidates` compares. All logarithms are to base 2 here, which the GPU computes directly: with s = log2(e) /
temperature, z = (logit - top) * s.

Shape legend: M rows, V vocabulary, S splits of a row. A block is [LANES, U, W]: W neighbouring logits are a load of
16 bytes, and a lane has U such loads on their way at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.kernels.noise_triton import block_ids, log2_noise


class Config(NamedTuple):
    """How the work is cut: loads of a lane at a time (U), lanes of a program (32 a warp), programs wanted."""

    vectors: int
    lanes: int
    num_programs: int


CONFIGS = {False: Config(2, 128, 1056), True: Config(1, 128, 2112)}
"""By `is_sampling`. Of 128 lanes, a processor (the H200 has 132) holds 9 programs when greedy, 10 when sampling."""
_MAX_SPLITS = 128
_VECTOR_BYTES = 16
_FIELDS = tl.constexpr(4)  # of a share: top, mass, moment, score

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-3.0e38)  # below any logit that counts, and still finite: differences are never inf - inf
_FLOOR = tl.constexpr(-200.0)  # of a log2-probability: exp2 gives 0, and noise (at most 64) cannot make it win
_MIN_TEMPERATURE = tl.constexpr(1e-30)  # the reciprocal stays finite


class DrawWorkspace:
    """What the programs of a row tell each other. Make it outside of CUDA graphs; one `draw` at a time may use it.

    Attributes:
        vocab_size: the largest V.
        max_splits: the most that a row can be split into, a power of two.
        shares: float32 [max_rows, max_splits, 4].
        share_blocks: int32 [max_rows, max_splits], where each share's leader is.
        num_finished: int32 [max_rows], programs that have finished; 0 between draws.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self.vocab_size = vocab_size
        self.max_splits = min(triton.next_power_of_2(vocab_size), _MAX_SPLITS)
        self.shares = torch.empty(max_rows, self.max_splits, _FIELDS.value, device=device)
        self.share_blocks = torch.empty(max_rows, self.max_splits, dtype=torch.int32, device=device)
        self.num_finished = torch.zeros(max_rows, dtype=torch.int32, device=device)


def draw(
    logits: Tensor,
    temperature: Tensor,
    draw_keys: Tensor,
    mask_token_id: int,
    is_sampling: bool,
    workspace: DrawWorkspace,
    num_rows: Tensor | None = None,
    needs_entropy: bool = True,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token for each row; the mask token never.

    Args:
        logits: float [M, V], rows contiguous.
        temperature: float32 [M]; 0 is argmax (ties: the lowest id) with the probabilities of the plain softmax.
        draw_keys: int64 [M] from `t3d.noise.draw_keys`.
        mask_token_id: id whose probability is 0 always.
        is_sampling: False promises that every temperature is 0; then no noise is computed.
        workspace: for at least M rows of V logits.
        num_rows: int32 [1]; the rows from there on are padding, and their results undefined. All rows if None.
        needs_entropy: False leaves the entropy 0, and saves its work.
        config: how the work is cut; `CONFIGS` when None.

    Returns:
        token ids int64 [M]; their probabilities float32 [M]; entropy of the distribution drawn from float32 [M], nats.
        Where a logit is NaN or +inf, or all but the mask token's are -inf, probability and entropy are NaN and the id
        is any of the vocabulary.

    Raises:
        ValueError: when the workspace is too small.
    """
    count, vocab_size = logits.shape
    if count > len(workspace.num_finished) or vocab_size > workspace.vocab_size:
        raise ValueError(f"logits {tuple(logits.shape)} are more than the workspace was made for")
    config = config or CONFIGS[is_sampling]
    width = _VECTOR_BYTES // logits.element_size()
    num_blocks = triton.cdiv(vocab_size, config.vectors * config.lanes * width)
    max_splits = workspace.max_splits
    blocks_per_split = choose_blocks_per_split(num_blocks, min(config.num_programs // max(count, 1), max_splits))
    token_ids = torch.empty(count, dtype=torch.int64, device=logits.device)
    confidence = torch.empty(count, dtype=torch.float32, device=logits.device)
    entropy = torch.empty_like(confidence)
    _draw_kernel[(count, triton.cdiv(num_blocks, blocks_per_split))](
        logits,
        temperature,
        draw_keys,
        num_rows,
        token_ids,
        confidence,
        entropy,
        workspace.shares,
        workspace.share_blocks,
        workspace.num_finished,
        logits.stride(0),
        vocab_size,
        mask_token_id,
        blocks_per_split,
        IS_SAMPLING=is_sampling,
        NEEDS_ENTROPY=needs_entropy,
        MAX_SPLITS=max_splits,
        VECTORS=config.vectors,
        LANES=config.lanes,
        WIDTH=width,
        num_warps=max(config.lanes // 32, 1),
    )
    return token_ids, confidence, entropy


def choose_blocks_per_split(num_blocks: int, wanted_splits: int) -> int:
    """Blocks of one program, so that there are at most the wanted splits, and at least one."""
    return triton.cdiv(num_blocks, max(wanted_splits, 1))


@triton.jit(do_not_specialize=["mask_token_id", "blocks_per_split"])
def _draw_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    num_rows_ptr: tl.tensor,
    token_ids_ptr: tl.tensor,
    confidence_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    shares_ptr: tl.tensor,
    share_blocks_ptr: tl.tensor,
    num_finished_ptr: tl.tensor,
    row_stride: tl.tensor,
    vocab_size: tl.tensor,
    mask_token_id: tl.tensor,
    blocks_per_split: tl.tensor,
    IS_SAMPLING: tl.constexpr,
    NEEDS_ENTROPY: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    if num_rows_ptr is not None:  # noqa: SIM102 - Triton's `and` would load from None
        if row >= tl.load(num_rows_ptr):
            return
    logits_row = (logits_ptr + row * row_stride, vocab_size, mask_token_id)
    temperature = tl.load(temperature_ptr + row)
    is_drawn = temperature > 0.0
    scale = tl.where(is_drawn, _LOG2_E / tl.maximum(temperature, _MIN_TEMPERATURE), _LOG2_E)
    race = (scale, tl.where(is_drawn, 1.0, 0.0), tl.load(keys_ptr + row).to(tl.uint64))
    SHAPE: tl.constexpr = (LANES, VECTORS, WIDTH)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    first_block = split * blocks_per_split
    num_blocks = tl.cdiv(vocab_size, LANES * VECTORS * WIDTH)
    end_block = tl.minimum(first_block + blocks_per_split, num_blocks)
    tops, masses, moments, leads, leader_blocks = _reduce_blocks(
        logits_row, first_block, end_block, race, IS_SAMPLING, NEEDS_ENTROPY, SHAPE
    )

    top, mass, moment, lead, leader_block = _combine(tops, masses, moments, leads, leader_blocks, scale)
    place = row * MAX_SPLITS + split
    tl.store(shares_ptr + place * _FIELDS, top)
    tl.store(shares_ptr + place * _FIELDS + 1, mass)
    tl.store(shares_ptr + place * _FIELDS + 2, moment)
    tl.store(shares_ptr + place * _FIELDS + 3, lead)
    tl.store(share_blocks_ptr + place, leader_block)
    tl.debug_barrier()  # the stores of all threads come before the count
    if tl.atomic_add(num_finished_ptr + row, 1, sem="acq_rel") == num_splits - 1:
        row_top, row_mass, row_moment, row_block = _combine_shares(
            shares_ptr + row * MAX_SPLITS * _FIELDS, share_blocks_ptr + row * MAX_SPLITS, num_splits, scale, MAX_SPLITS
        )
        row_block = tl.minimum(row_block, num_blocks - 1)  # among NaN nobody leads
        token_id, z = _find_winner(logits_row, row_block, row_top, race, IS_SAMPLING, SHAPE)
        tl.store(token_ids_ptr + row, token_id.to(tl.int64))
        tl.store(confidence_ptr + row, tl.exp2(z) / row_mass)
        tl.store(entropy_ptr + row, (tl.log2(row_mass) - row_moment / row_mass) * _LN_2 if NEEDS_ENTROPY else 0.0)
        tl.store(num_finished_ptr + row, 0)  # ready for the next draw, or the same one replayed


@triton.jit
def _reduce_blocks(
    logits_row: tl.tuple,
    first_block: tl.tensor,
    end_block: tl.tensor,
    race: tl.tuple,
    IS_SAMPLING: tl.constexpr,
    NEEDS_ENTROPY: tl.constexpr,
    SHAPE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Softmax sums and race of each lane over blocks first_block .. end_block - 1.

    Args:
        logits_row: pointer to the first of them, V, mask token id.
        race: s, 1 where there is noise (0 where greedy), key (uint64).

    Returns:
        Of [LANES] each. tops: largest logit; masses: sum of exp2(z); moments: sum of z * exp2(z), or 0; leads: the
        race's best score, relative to the top; leader_blocks: where it is. NaN or +inf makes the mass NaN.
    """
    scale, noise_scale, key = race
    tops = tl.full([SHAPE[0]], _LOWEST, tl.float32)
    masses = tl.zeros([SHAPE[0]], tl.float32)
    moments = tl.zeros([SHAPE[0]], tl.float32)
    leads = tl.full([SHAPE[0]], float("-inf") if IS_SAMPLING else 0.0, tl.float32)
    leader_blocks = tl.zeros([SHAPE[0]], tl.int32)
    for block in range(first_block, end_block):
        logits = _load_block(logits_row, block, SHAPE)
        new_tops = tl.maximum(tops, tl.max(tl.max(logits, axis=2), axis=1))
        shifts = tl.maximum((tops - new_tops) * scale, _FLOOR)
        decays = tl.exp2(shifts)
        z = (logits - new_tops[:, None, None]) * scale
        if NEEDS_ENTROPY:
            z = tl.maximum(z, _FLOOR, propagate_nan=tl.PropagateNan.ALL)  # 0 * -inf would be NaN
        weights = tl.exp2(z)
        if NEEDS_ENTROPY:
            moments = (moments + shifts * masses) * decays + tl.sum(tl.sum(z * weights, axis=2), axis=1)
        masses = masses * decays + tl.sum(tl.sum(weights, axis=2), axis=1)
        if IS_SAMPLING:
            scores = z - noise_scale * log2_noise(key, block, SHAPE)
            block_leads = tl.max(tl.max(scores, axis=2), axis=1)
            leads += shifts
            leader_blocks = tl.where(block_leads > leads, block, leader_blocks)  # on a tie the earlier stays
            leads = tl.maximum(leads, block_leads)
        else:
            leader_blocks = tl.where(new_tops > tops, block, leader_blocks)
        tops = new_tops
    return tops, masses, moments, leads, leader_blocks


@triton.jit
def _combine(
    tops: tl.tensor, masses: tl.tensor, moments: tl.tensor, leads: tl.tensor, leader_blocks: tl.tensor, scale: tl.tensor
) -> tuple[tl.tensor, ...]:
    """One share of many, in the same fields: each a scalar from [n]."""
    top = tl.max(tops, axis=0)
    shifts = tl.maximum((tops - top) * scale, _FLOOR)
    decays = tl.exp2(shifts)
    mass = tl.sum(masses * decays, axis=0)
    moment = tl.sum((moments + shifts * masses) * decays, axis=0)
    leads += shifts
    lead = tl.max(leads, axis=0)
    leader_block = tl.min(tl.where(leads == lead, leader_blocks, 2**31 - 1), axis=0)
    return top, mass, moment, lead, leader_block


@triton.jit
def _combine_shares(
    shares_ptr: tl.tensor, blocks_ptr: tl.tensor, num_splits: tl.tensor, scale: tl.tensor, MAX_SPLITS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """A row's top, mass (NaN instead of 0), moment and the block that its winner is in."""
    splits = tl.arange(0, MAX_SPLITS)
    is_present = splits < num_splits
    share_ptrs = shares_ptr + splits * _FIELDS
    tops = tl.load(share_ptrs, mask=is_present, other=_LOWEST, cache_modifier=".cg")
    masses = tl.load(share_ptrs + 1, mask=is_present, other=0.0, cache_modifier=".cg")
    moments = tl.load(share_ptrs + 2, mask=is_present, other=0.0, cache_modifier=".cg")
    leads = tl.load(share_ptrs + 3, mask=is_present, other=float("-inf"), cache_modifier=".cg")
    leader_blocks = tl.load(blocks_ptr + splits, mask=is_present, other=0, cache_modifier=".cg")
    top, mass, moment, _, leader_block = _combine(tops, masses, moments, leads, leader_blocks, scale)
    return top, tl.where(mass > 0.0, mass, float("nan")), moment, leader_block


@triton.jit
def _find_winner(
    logits_row: tl.tuple,
    block: tl.tensor,
    top: tl.tensor,
    race: tl.tuple,
    IS_SAMPLING: tl.constexpr,
    SHAPE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The token that wins the race in its block, and its z."""
    scale, noise_scale, key = race
    z = tl.maximum((_load_block(logits_row, block, SHAPE) - top) * scale, _FLOOR)
    scores = z
    if IS_SAMPLING:
        scores = z - noise_scale * log2_noise(key, block, SHAPE)
    ids = block_ids(block, SHAPE)
    last_id = logits_row[1] - 1
    token_id = tl.min(tl.where(scores == tl.max(scores), ids, last_id))
    return tl.minimum(token_id, last_id), tl.max(tl.where(ids == token_id, z, _FLOOR))


@triton.jit
def _load_block(logits_row: tl.tuple, block: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """Logits float32 [LANES, U, W]; -inf for the mask token and past the end."""
    row_ptr, vocab_size, mask_token_id = logits_row
    ids = block_ids(block, SHAPE)
    size: tl.constexpr = SHAPE[0] * SHAPE[1] * SHAPE[2]
    if ((block + 1) * size > vocab_size) | (mask_token_id // size == block):  # no other block pays for comparisons
        logits = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
        logits = tl.where(ids == mask_token_id, float("-inf"), logits)
    else:
        logits = tl.load(row_ptr + ids, eviction_policy="evict_first").to(tl.float32)
    return logits

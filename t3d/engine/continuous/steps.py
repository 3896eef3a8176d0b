"""What happens around the model at every step, in plain torch: the definition, the CPU's path, and the kernels'
reference.

Nothing here waits for the device or has a shape that depends on what it holds, so all of it can be part of a CUDA
graph.

Shape legend: n rows of a step, B block size, c commit places, N = (n + c) * B tokens of its forward, m sampling places.
A forward's tokens are n active blocks, then c finished ones that ride along to be committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

import torch
from torch import Tensor

from t3d.engine.continuous.state import Field, Setting, State
from t3d.engine.rules import RULES, rule_number
from t3d.engine.sampling import Candidates
from t3d.noise import draw_keys


@dataclass(frozen=True, slots=True)
class Work:
    """One step's forward and its sampling, in tensors whose sizes the host chose.

    A row that has no room (its finished block finds no commit place, or its masks no sampling places) waits: it takes
    no part in the step, and nothing of it changes.

    Attributes:
        slots: int64 [n]; the idle slot where there is no request.
        takes_part: bool [n].
        tokens: int64 [N]; anything where padding.
        positions: int32 [N]; 0 where padding.
        places: int32 [N] page * page_size + offset, where keys and values go; in page 0 for padding.
        tiles: int32 [n, 5] see `t3d.kernels.attention`.
        samples: int64 [n, B] the sampling place of each masked position, -1 where there is none.
        sample_tokens: int64 [m] which of the N tokens a sampling place belongs to; 0 where padding.
        sample_slots: int64 [m]; the idle slot where padding.
        sample_keys: int64 [m] randomness of the draw.
        num_samples: int32 [1] sampling places that are not padding; they lie in front.
    """

    slots: Tensor
    takes_part: Tensor
    tokens: Tensor
    positions: Tensor
    places: Tensor
    tiles: Tensor
    samples: Tensor
    sample_tokens: Tensor
    sample_slots: Tensor
    sample_keys: Tensor
    num_samples: Tensor


def begin(state: State, slots: Tensor, page_table: Tensor, page_size: int, commits: int, samples: int) -> Work:
    """Choose who takes part and lay out the forward.

    Args:
        slots: int64 [n].
        page_table: int32 [S + 1, pages] page of each stretch of `page_size` positions.
        commits, samples: c and m; c may be 0, m is at least B.
    """
    block_size, num_rows = state.block_size, len(slots)
    numbers, active = state.numbers[slots], state.active[slots]
    start = numbers[:, Field.BLOCK_START]
    is_running = numbers[:, Field.IS_RUNNING] > 0
    must_commit = is_running & (numbers[:, Field.HAS_UNCOMMITTED] > 0)
    is_masked = (active == state.mask_token_id) & is_running[:, None]

    commits_so_far = must_commit.cumsum(0)
    samples_so_far = is_masked.sum(1).cumsum(0)
    takes_part = is_running & (~must_commit | (commits_so_far <= commits)) & (samples_so_far <= samples)
    commits_now = must_commit & takes_part
    commit_place = torch.where(commits_now, commits_so_far - 1, -1)

    # Tokens and positions: the active blocks, then the finished ones at their commit places (one spare takes the rest).
    positions = torch.where(takes_part[:, None], start[:, None] + state.offsets, 0)
    target = torch.where(commits_now, commit_place, commits)
    finished = state.previous.new_zeros((commits + 1, block_size)).index_copy(0, target, state.previous[slots])
    before = torch.where(commits_now[:, None], positions - block_size, 0)
    finished_positions = positions.new_zeros((commits + 1, block_size)).index_copy(0, target, before)
    owners = torch.full((commits + 1,), state.idle_slot, device=slots.device).index_copy(
        0, target, torch.where(commits_now, slots, state.idle_slot)
    )
    all_positions = torch.cat([positions, finished_positions[:commits]])
    all_owners = torch.cat([torch.where(takes_part, slots, state.idle_slot), owners[:commits]])
    pages = page_table[all_owners[:, None], all_positions // page_size].long()

    # Sampling places, row by row.
    wanted = is_masked & takes_part[:, None]
    place = torch.where(wanted, wanted.flatten().cumsum(0).view_as(wanted) - 1, -1)
    target = torch.where(wanted, place, samples).flatten()
    rows = torch.arange(num_rows, device=slots.device)[:, None].expand_as(wanted).flatten()
    tokens_at = torch.arange(num_rows * block_size, device=slots.device)
    sample_rows = rows.new_zeros(samples + 1).index_copy(0, target, rows)[:samples]
    sample_tokens = tokens_at.new_zeros(samples + 1).index_copy(0, target, tokens_at)[:samples]
    num_samples = wanted.sum().to(torch.int32)[None]
    is_sample = torch.arange(samples, device=slots.device) < num_samples
    sample_slots = torch.where(is_sample, slots[sample_rows], state.idle_slot)
    keys = draw_keys(
        state.numbers[sample_slots, Field.SEED],
        all_positions.flatten()[sample_tokens],
        state.numbers[sample_slots, Field.NUM_STEPS],
    )
    return Work(
        slots=slots,
        takes_part=takes_part,
        tokens=torch.cat([active, finished[:commits]]).flatten(),
        positions=all_positions.flatten().to(torch.int32),
        places=(pages * page_size + all_positions % page_size).flatten().to(torch.int32),
        tiles=_tiles(slots, takes_part, start, commit_place, block_size),
        samples=place,
        sample_tokens=sample_tokens,
        sample_slots=sample_slots,
        sample_keys=keys,
        num_samples=num_samples,
    )


def _tiles(slots: Tensor, takes_part: Tensor, start: Tensor, commit_place: Tensor, block_size: int) -> Tensor:
    """Attention's work: a row's finished block, if it rides along, and its active block share their keys."""
    rows = torch.arange(len(slots), device=slots.device)
    first = torch.where(commit_place >= 0, (len(slots) + commit_place) * block_size, -1)
    second = torch.where(takes_part, rows * block_size, -1)
    end = torch.where(takes_part, 2 * block_size, 0)
    return torch.stack([slots, start - block_size, first, second, end], dim=1).to(torch.int32)


class Report(IntEnum):
    """Columns of a step's report, int32 [n, HEAD + 3 * B]; tokens, reveal steps and confidences (as bits) follow."""

    EVENTS = 0
    BLOCK_START = 1  # of the block that the row worked on
    NUM_MASKED = 2  # of the block that the row works on next
    STEP_IN_BLOCK = 3  # of that block
    NUM_FORWARDS = 4
    HEAD = 5


class Event(IntFlag):
    """What happened to a row in a step."""

    TOOK_PART = 1
    FINISHED_BLOCK = 2
    IS_OVER = 4
    FAILED = 8


def finish(state: State, work: Work, candidates: Candidates, rules: frozenset[str]) -> Tensor:
    """Reveal what each request's rule chooses, close finished blocks, and say what happened.

    Args:
        candidates: for the m sampling places; anything where padding.
        rules: those that occur among the rows.

    Returns:
        int32 [n, HEAD + 3 * B] with the columns of `Report`: the block that the row worked on, whole if it is finished.
    """
    slots, block_size = work.slots, state.block_size
    numbers, settings, active = state.numbers[slots], state.settings[slots], state.active[slots]
    start, step = numbers[:, Field.BLOCK_START], numbers[:, Field.STEP_IN_BLOCK]
    is_masked = work.samples >= 0
    source = work.samples.clamp_min(0)
    confidence = torch.where(is_masked, candidates.confidence[source], 0.0)
    entropy = torch.where(is_masked, candidates.entropy[source], 0.0)
    has_failed = ~confidence.isfinite().all(dim=1)

    num_steps = numbers[:, Field.NUM_STEPS] + 1
    chosen = _apply_rules(numbers, settings, rules, confidence, is_masked, step, entropy) & ~has_failed[:, None]
    active = torch.where(chosen, candidates.token_ids[source], active)
    reveal_steps = torch.where(chosen, num_steps[:, None], state.reveal_steps[slots])
    confidences = torch.where(chosen, confidence, state.confidences[slots])

    still_masked = active == state.mask_token_id
    closes = work.takes_part & (~still_masked.any(dim=1) | has_failed)
    positions = start[:, None] + state.offsets
    is_stop = (active[:, :, None] == state.stop_tokens[slots, None, :]).any(dim=2)
    is_stop &= positions >= numbers[:, Field.PROMPT_LENGTH, None]
    at_end = start + block_size >= numbers[:, Field.MAX_LENGTH]
    is_over = closes & (is_stop.any(dim=1) | at_end | has_failed)

    events = (work.takes_part * Event.TOOK_PART + closes * Event.FINISHED_BLOCK + is_over * Event.IS_OVER) + (
        work.takes_part & has_failed
    ) * Event.FAILED
    step = torch.where(work.takes_part, torch.where(closes, 0, step + 1), step)
    num_forwards = numbers[:, Field.NUM_FORWARDS] + work.takes_part
    head = (events, start, torch.where(closes, block_size, still_masked.sum(1)), step, num_forwards)
    report = torch.cat(
        [
            each.to(torch.int32)
            for each in (torch.stack(head, dim=1), active, reveal_steps, confidences.view(torch.int32))
        ],
        dim=1,
    )

    takes_part, closes_ = work.takes_part[:, None], closes[:, None]
    numbers = numbers.clone()
    numbers[:, Field.IS_RUNNING] *= ~is_over
    numbers[:, Field.BLOCK_START] += closes * block_size
    numbers[:, Field.STEP_IN_BLOCK] = step
    numbers[:, Field.NUM_STEPS] += work.takes_part
    numbers[:, Field.NUM_FORWARDS] = num_forwards
    numbers[:, Field.HAS_UNCOMMITTED] = torch.where(work.takes_part, closes, numbers[:, Field.HAS_UNCOMMITTED] > 0)
    state.numbers[slots] = numbers
    state.previous[slots] = torch.where(closes_, active, state.previous[slots])
    state.active[slots] = torch.where(
        closes_, state.mask_token_id, torch.where(takes_part, active, state.active[slots])
    )
    state.reveal_steps[slots] = torch.where(closes_, 0, reveal_steps)
    state.confidences[slots] = torch.where(closes_, 0.0, confidences)
    return report


def _apply_rules(
    numbers: Tensor,
    settings: Tensor,
    rules: frozenset[str],
    confidence: Tensor,
    is_masked: Tensor,
    step: Tensor,
    entropy: Tensor,
) -> Tensor:
    chosen = torch.zeros_like(is_masked)
    for name in sorted(rules):
        reveal = RULES[name](
            confidence,
            is_masked,
            step,
            numbers[:, Field.STEPS_PER_BLOCK],
            entropy=entropy,
            threshold=settings[:, Setting.THRESHOLD],
            entropy_bound=settings[:, Setting.ENTROPY_BOUND],
        )
        chosen |= reveal & (numbers[:, Field.RULE, None] == rule_number(name))
    return chosen

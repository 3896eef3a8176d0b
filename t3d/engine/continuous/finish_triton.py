"""`finish` of `t3d.engine.continuous.steps` in one Triton launch.

Shape legend: n rows of a step, B block size, E stop tokens, P = POSITIONS, B rounded up to a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from t3d.engine.continuous import steps
from t3d.engine.continuous.rules_triton import KERNEL_RULES, choose
from t3d.engine.continuous.state import Field, Setting, State
from t3d.engine.continuous.steps import Event, Report, Work
from t3d.engine.sampling import Candidates

_PROMPT_LENGTH = tl.constexpr(int(Field.PROMPT_LENGTH))
_MAX_LENGTH = tl.constexpr(int(Field.MAX_LENGTH))
_STEPS_PER_BLOCK = tl.constexpr(int(Field.STEPS_PER_BLOCK))
_RULE = tl.constexpr(int(Field.RULE))
_IS_RUNNING = tl.constexpr(int(Field.IS_RUNNING))
_BLOCK_START = tl.constexpr(int(Field.BLOCK_START))
_STEP_IN_BLOCK = tl.constexpr(int(Field.STEP_IN_BLOCK))
_NUM_STEPS = tl.constexpr(int(Field.NUM_STEPS))
_NUM_FORWARDS = tl.constexpr(int(Field.NUM_FORWARDS))
_HAS_UNCOMMITTED = tl.constexpr(int(Field.HAS_UNCOMMITTED))
_NUM_FIELDS = tl.constexpr(len(Field))
_THRESHOLD = tl.constexpr(int(Setting.THRESHOLD))
_ENTROPY_BOUND = tl.constexpr(int(Setting.ENTROPY_BOUND))
_NUM_SETTINGS = tl.constexpr(len(Setting))

_REPORT_EVENTS = tl.constexpr(int(Report.EVENTS))
_REPORT_BLOCK_START = tl.constexpr(int(Report.BLOCK_START))
_REPORT_NUM_MASKED = tl.constexpr(int(Report.NUM_MASKED))
_REPORT_STEP_IN_BLOCK = tl.constexpr(int(Report.STEP_IN_BLOCK))
_REPORT_NUM_FORWARDS = tl.constexpr(int(Report.NUM_FORWARDS))
_REPORT_HEAD = tl.constexpr(int(Report.HEAD))
_TOOK_PART = tl.constexpr(int(Event.TOOK_PART))
_FINISHED_BLOCK = tl.constexpr(int(Event.FINISHED_BLOCK))
_IS_OVER = tl.constexpr(int(Event.IS_OVER))
_FAILED = tl.constexpr(int(Event.FAILED))

_EXPONENT_BITS = tl.constexpr(0x7F800000)  # of a float32; all are set where it is not finite
_MIN_LANES = 16  # of a power-of-two extent
_CELLS_PER_WARP = 1024
_MAX_STOP_TILE = 64


def finish(state: State, work: Work, candidates: Candidates, rules: frozenset[str]) -> Tensor:
    """`steps.finish`, same arguments and result; plain torch if a rule is not among `KERNEL_RULES`."""
    if not rules <= KERNEL_RULES:
        return steps.finish(state, work, candidates, rules)
    block_size, num_stops, positions = state.block_size, state.stop_tokens.shape[1], _lanes(state.block_size)
    num_columns = Report.HEAD + 3 * block_size
    report = torch.empty((len(work.slots), num_columns), dtype=torch.int32, device=work.slots.device)
    _finish_kernel[(len(work.slots),)](
        state.numbers,
        state.settings,
        state.stop_tokens,
        state.previous,
        state.active,
        state.reveal_steps,
        state.confidences,
        work.slots,
        work.takes_part,
        work.samples,
        candidates.token_ids,
        candidates.confidence,
        candidates.entropy,
        report,
        state.mask_token_id,
        BLOCK_SIZE=block_size,
        POSITIONS=positions,
        NUM_STOPS=num_stops,
        STOP_TILE=min(_lanes(num_stops), _MAX_STOP_TILE),
        num_warps=1 if positions * positions <= _CELLS_PER_WARP else 8,
    )
    return report


def _lanes(extent: int) -> int:
    return max(1 << (extent - 1).bit_length(), _MIN_LANES)


@triton.jit(do_not_specialize=["mask_token_id"])
def _finish_kernel(
    numbers: tl.tensor,
    settings: tl.tensor,
    stop_tokens: tl.tensor,
    previous: tl.tensor,
    active: tl.tensor,
    reveal_steps: tl.tensor,
    confidences: tl.tensor,
    slots: tl.tensor,
    takes_part: tl.tensor,
    samples: tl.tensor,
    candidate_ids: tl.tensor,
    candidate_confidence: tl.tensor,
    candidate_entropy: tl.tensor,
    report: tl.tensor,
    mask_token_id: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    STOP_TILE: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0)
    offsets = tl.arange(0, POSITIONS)
    in_block = offsets < BLOCK_SIZE
    slot = tl.load(slots + row)
    took_part = tl.load(takes_part + row).to(tl.int32) > 0
    fields = numbers + slot * _NUM_FIELDS
    start = tl.load(fields + _BLOCK_START)
    step = tl.load(fields + _STEP_IN_BLOCK)
    num_steps = tl.load(fields + _NUM_STEPS)
    num_forwards = tl.load(fields + _NUM_FORWARDS)
    is_running = tl.load(fields + _IS_RUNNING)
    cells = slot * BLOCK_SIZE + offsets

    # Reveal.
    source = tl.load(samples + row * BLOCK_SIZE + offsets, mask=in_block, other=-1)
    is_masked = source >= 0
    confidence = tl.load(candidate_confidence + source, mask=is_masked, other=0.0)
    entropy = tl.load(candidate_entropy + source, mask=is_masked, other=0.0)
    is_broken = (confidence.to(tl.int32, bitcast=True) & _EXPONENT_BITS) == _EXPONENT_BITS
    has_failed = tl.max(is_broken.to(tl.int32), axis=0) > 0
    is_chosen = choose(
        tl.load(fields + _RULE),
        confidence,
        entropy,
        is_masked,
        step,
        tl.load(fields + _STEPS_PER_BLOCK),
        tl.load(settings + slot * _NUM_SETTINGS + _THRESHOLD),
        tl.load(settings + slot * _NUM_SETTINGS + _ENTROPY_BOUND),
        BLOCK_SIZE,
        POSITIONS,
    ) & (has_failed == 0)
    candidate = tl.load(candidate_ids + source, mask=is_chosen, other=0).to(tl.int64)
    token = tl.where(is_chosen, candidate, tl.load(active + cells, mask=in_block, other=-1))
    reveal_step = tl.where(is_chosen, num_steps + 1, tl.load(reveal_steps + cells, mask=in_block, other=0))
    revealed_with = tl.where(is_chosen, confidence, tl.load(confidences + cells, mask=in_block, other=0.0))

    # Close the block?
    still_masked = tl.sum((in_block & (token == mask_token_id)).to(tl.int32), axis=0)
    closes = took_part & ((still_masked == 0) | has_failed)
    may_stop = in_block & (start + offsets >= tl.load(fields + _PROMPT_LENGTH))
    is_stop = may_stop & _is_among(token, stop_tokens + slot * NUM_STOPS, POSITIONS, NUM_STOPS, STOP_TILE)
    stops = tl.max(is_stop.to(tl.int32), axis=0) > 0
    at_end = start + BLOCK_SIZE >= tl.load(fields + _MAX_LENGTH)
    is_over = closes & (stops | at_end | has_failed)
    next_step = tl.where(took_part, tl.where(closes, 0, step + 1), step)
    next_num_forwards = num_forwards + took_part.to(tl.int64)

    # Report.
    events = took_part.to(tl.int32) * _TOOK_PART + closes.to(tl.int32) * _FINISHED_BLOCK
    events += is_over.to(tl.int32) * _IS_OVER + (took_part & has_failed).to(tl.int32) * _FAILED
    head = report + row * (_REPORT_HEAD + 3 * BLOCK_SIZE)
    tl.store(head + _REPORT_EVENTS, events)
    tl.store(head + _REPORT_BLOCK_START, start.to(tl.int32))
    tl.store(head + _REPORT_NUM_MASKED, tl.where(closes, BLOCK_SIZE, still_masked))
    tl.store(head + _REPORT_STEP_IN_BLOCK, next_step.to(tl.int32))
    tl.store(head + _REPORT_NUM_FORWARDS, next_num_forwards.to(tl.int32))
    body = head + _REPORT_HEAD + offsets
    tl.store(body, token.to(tl.int32), mask=in_block)
    tl.store(body + BLOCK_SIZE, reveal_step.to(tl.int32), mask=in_block)
    tl.store(body + 2 * BLOCK_SIZE, revealed_with.to(tl.int32, bitcast=True), mask=in_block)

    # Move on, in place; not before every warp has read the row.
    tl.debug_barrier()
    changes = in_block & took_part
    tl.store(fields + _IS_RUNNING, tl.where(is_over, 0, is_running), mask=took_part)
    tl.store(fields + _BLOCK_START, start + tl.where(closes, BLOCK_SIZE, 0), mask=took_part)
    tl.store(fields + _STEP_IN_BLOCK, next_step, mask=took_part)
    tl.store(fields + _NUM_STEPS, num_steps + 1, mask=took_part)
    tl.store(fields + _NUM_FORWARDS, next_num_forwards, mask=took_part)
    tl.store(fields + _HAS_UNCOMMITTED, closes.to(tl.int64), mask=took_part)
    tl.store(previous + cells, token, mask=in_block & closes)
    tl.store(active + cells, tl.where(closes, mask_token_id, token), mask=changes)
    tl.store(reveal_steps + cells, tl.where(closes, 0, reveal_step), mask=changes)
    tl.store(confidences + cells, tl.where(closes, 0.0, revealed_with), mask=changes)


@triton.jit
def _is_among(
    token: tl.tensor, stop_tokens: tl.tensor, POSITIONS: tl.constexpr, NUM_STOPS: tl.constexpr, STOP_TILE: tl.constexpr
) -> tl.tensor:
    """Whether a token is one of the row's stop tokens, int1 [P]. `stop_tokens` points to NUM_STOPS of them."""
    is_found = tl.zeros([POSITIONS], dtype=tl.int32)
    for first in range(0, NUM_STOPS, STOP_TILE):
        places = first + tl.arange(0, STOP_TILE)
        stops = tl.load(stop_tokens + places, mask=places < NUM_STOPS, other=-1)
        is_found = tl.maximum(is_found, tl.max((token[:, None] == stops[None, :]).to(tl.int32), axis=1))
    return is_found > 0

"""The rules of `t3d.engine.rules` for one row inside a Triton kernel: no sort, every pair of positions is compared.

Shape legend: B block size, P = POSITIONS, B rounded up to a power of two; positions from B on are not masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from t3d.engine.rules import rule_number

KERNEL_RULES = frozenset({"sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"})
"""Those that `choose` knows."""

_SEQUENTIAL = tl.constexpr(rule_number("sequential"))
_LOW_CONFIDENCE_STATIC = tl.constexpr(rule_number("low_confidence_static"))
_LOW_CONFIDENCE_DYNAMIC = tl.constexpr(rule_number("low_confidence_dynamic"))
_ENTROPY_BOUNDED = tl.constexpr(rule_number("entropy_bounded"))


@triton.jit
def choose(
    rule: tl.tensor,
    confidence: tl.tensor,
    entropy: tl.tensor,
    is_masked: tl.tensor,
    step: tl.tensor,
    steps_per_block: tl.tensor,
    threshold: tl.tensor,
    entropy_bound: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
) -> tl.tensor:
    """The masked positions that the row's rule reveals, int1 [P]. All rules are computed: a branch would cost more.

    Args:
        rule: int64, its `rule_number`.
        confidence: float32 [P], finite (see `Rule` for all that follow).
        entropy: float32 [P] nats, 0 where not masked.
        is_masked: int1 [P].
        step, steps_per_block: int64.
        threshold, entropy_bound: float32.
    """
    steps = tl.maximum(steps_per_block, 1)  # a slot that no request has had yet says 0
    quota = BLOCK_SIZE // steps + (step < BLOCK_SIZE % steps).to(tl.int64)
    in_turn = is_masked & (tl.cumsum(is_masked.to(tl.int32), 0) <= quota)
    rank = tl.sum(_comes_before(-confidence, is_masked, POSITIONS).to(tl.int32), axis=1)
    most_confident = is_masked & (rank < quota)
    is_sure = is_masked & (confidence > threshold)
    within_bound = _within_bound(entropy, is_masked, entropy_bound, POSITIONS)
    return (
        ((rule == _SEQUENTIAL) & in_turn)
        | ((rule == _LOW_CONFIDENCE_STATIC) & most_confident)
        | ((rule == _LOW_CONFIDENCE_DYNAMIC) & (most_confident | is_sure))
        | ((rule == _ENTROPY_BOUNDED) & within_bound)
    )


@triton.jit
def _comes_before(cost: tl.tensor, is_masked: tl.tensor, POSITIONS: tl.constexpr) -> tl.tensor:
    """Whether a masked position (column) precedes another (row) by rising cost, then by place: int1 [P, P]."""
    places = tl.arange(0, POSITIONS)
    is_cheaper = cost[None, :] < cost[:, None]
    is_left_of_its_equal = (cost[None, :] == cost[:, None]) & (places[None, :] < places[:, None])
    return is_masked[None, :] & (is_cheaper | is_left_of_its_equal)


@triton.jit
def _within_bound(
    entropy: tl.tensor, is_masked: tl.tensor, entropy_bound: tl.tensor, POSITIONS: tl.constexpr
) -> tl.tensor:
    """The lowest entropies whose running sum stays within the bound, at least one: int1 [P].

    Summed in float64 and rounded once, as torch's cumsum on the CPU does, so that the order of the terms does not tell.
    """
    comes_before = _comes_before(entropy, is_masked, POSITIONS)
    rank = tl.sum(comes_before.to(tl.int32), axis=1)
    terms = entropy.to(tl.float64)
    sum_before = tl.sum(tl.where(comes_before, terms[None, :], 0.0), axis=1)
    is_within = is_masked & ((sum_before + terms).to(tl.float32) <= entropy_bound)
    count = tl.maximum(tl.sum(is_within.to(tl.int32), axis=0), 1)
    return is_masked & (rank < count)

"""In which forward of its block each token was revealed, and how that depends on its place in the block.

Pure functions. Shape legend: L response tokens, B `block_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from t3d.corruption import reveal_rank
from t3d.models.attention import block_index, block_start
from t3d.types import Trajectory

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def positions_of(row: Trajectory) -> IntArray:
    """int64 [L]: absolute position of each response token."""
    return len(row.prompt_ids) + np.arange(len(row.response_ids))


def step_rank(reveal_step: IntArray, blocks: IntArray) -> IntArray:
    """The place of each token's step among the steps of its block: 1 for the first that revealed any of its tokens.

    Tokens revealed together share a rank; `t3d.corruption.reveal_rank`, which orders those too, is what it refines.

    Args:
        reveal_step: int64 [L].
        blocks: int64 [L] the block of each token, ascending.

    Returns:
        int64 [L], from 1 to the number of tokens in the block at most.
    """
    order = np.lexsort((reveal_rank(reveal_step, blocks), blocks))
    ordered_steps, ordered_blocks = reveal_step[order], blocks[order]
    new_block = np.diff(ordered_blocks, prepend=-1) != 0
    new_step = new_block | (np.diff(ordered_steps, prepend=0) != 0)
    steps_so_far = np.cumsum(new_step)
    before_block = np.maximum.accumulate(np.where(new_block, steps_so_far - 1, 0))
    ranks = np.empty(len(blocks), dtype=np.int64)
    ranks[order] = steps_so_far - before_block
    return ranks


@dataclass(frozen=True, slots=True)
class RevealOrder:
    """Counts over some responses; those of several are added by `+`.

    Attributes:
        counts: int64 [B, B]: tokens by position in their block (first axis) and rank less 1 (`step_rank`).
        confidence_sums: float64 [B]: sum of the known confidences by rank less 1.
        num_confidences: int64 [B]: how many these are.
    """

    counts: IntArray
    confidence_sums: FloatArray
    num_confidences: IntArray

    def __add__(self, other: Self) -> RevealOrder:
        """The counts of both; their B must be the same."""
        return RevealOrder(
            self.counts + other.counts,
            self.confidence_sums + other.confidence_sums,
            self.num_confidences + other.num_confidences,
        )

    def mean_confidence(self) -> list[float | None]:
        """By rank less 1; None where no token has the rank."""
        pairs = zip(self.confidence_sums.tolist(), self.num_confidences.tolist(), strict=True)
        return [total / number if number else None for total, number in pairs]


def reveal_order(row: Trajectory, block_size: int) -> RevealOrder:
    """The counts of one response; a confidence that is no number is left out."""
    positions = positions_of(row)
    blocks = block_index(positions, block_size)
    ranks = step_rank(np.asarray(row.reveal_step, dtype=np.int64), blocks) - 1
    counts = np.zeros((block_size, block_size), dtype=np.int64)
    np.add.at(counts, (positions - block_start(blocks, block_size), ranks), 1)
    confidence = np.asarray(row.confidence, dtype=np.float64)
    known = np.isfinite(confidence)
    return RevealOrder(
        counts,
        np.bincount(ranks[known], weights=confidence[known], minlength=block_size).astype(np.float64),
        np.bincount(ranks[known], minlength=block_size),
    )

"""How far two responses to one prompt agree: their tokens, and the order in which these were revealed.

Pure functions. Shape legend: L response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t3d.models.attention import block_index
from t3d.types import Trajectory
from t3d.viewer.order import IntArray, positions_of


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one pair of responses, or (`total`) of several.

    Attributes:
        num_pairs: pairs of responses; 1 unless added up.
        num_identical: of them, those with the same tokens from first to last.
        num_equal_tokens: positions at which both have the same token.
        num_tokens: tokens of the longer response: what one has beyond the other's end counts as different.
        same_order, opposite_order: pairs of tokens of one block that both files reveal at different steps, in the same
            and in the opposite order. Identical responses only: other tokens cannot be put side by side.
        together: pairs of tokens of one block that at least one of the files reveals in one step.
        first_difference: 0-based index of the first position that differs; None if identical or added up.
    """

    num_pairs: int
    num_identical: int
    num_equal_tokens: int
    num_tokens: int
    same_order: int
    opposite_order: int
    together: int
    first_difference: int | None = None

    @property
    def equal_share(self) -> float:
        """Equal tokens over the tokens of the longer response; 1 for two empty ones."""
        return self.num_equal_tokens / self.num_tokens if self.num_tokens else 1.0

    @property
    def order_agreement(self) -> float | None:
        """Goodman and Kruskal's gamma, (same - opposite) / (same + opposite), in [-1, 1].

        Kendall's tau over the pairs that both files order: a pair revealed in one step says nothing of order. None if
        there is no such pair.
        """
        ordered = self.same_order + self.opposite_order
        return (self.same_order - self.opposite_order) / ordered if ordered else None


def agreement(row: Trajectory, other: Trajectory, block_size: int, other_block_size: int) -> Agreement:
    """Compare two responses, each on the block grid of its own file."""
    ids, other_ids = list(row.response_ids), list(other.response_ids)
    equal = [first == second for first, second in zip(ids, other_ids, strict=False)]
    identical = ids == other_ids
    same, opposite, together = _orders(row, other, block_size, other_block_size) if identical else (0, 0, 0)
    return Agreement(
        num_pairs=1,
        num_identical=int(identical),
        num_equal_tokens=sum(equal),
        num_tokens=max(len(ids), len(other_ids)),
        same_order=same,
        opposite_order=opposite,
        together=together,
        first_difference=None if identical else [*equal, False].index(False),
    )


def total(agreements: Sequence[Agreement]) -> Agreement:
    """All of them added up; no first difference."""
    return Agreement(
        num_pairs=sum(each.num_pairs for each in agreements),
        num_identical=sum(each.num_identical for each in agreements),
        num_equal_tokens=sum(each.num_equal_tokens for each in agreements),
        num_tokens=sum(each.num_tokens for each in agreements),
        same_order=sum(each.same_order for each in agreements),
        opposite_order=sum(each.opposite_order for each in agreements),
        together=sum(each.together for each in agreements),
    )


def _orders(row: Trajectory, other: Trajectory, block_size: int, other_block_size: int) -> tuple[int, int, int]:
    """Pairs of tokens that share a block in both files: (same order, opposite order, together in one file)."""
    blocks, other_blocks = (
        block_index(positions_of(row), block_size),
        block_index(positions_of(other), other_block_size),
    )
    steps, other_steps = (np.asarray(each.reveal_step, dtype=np.int64) for each in (row, other))
    same = opposite = together = 0
    for distance in range(1, min(block_size, other_block_size, len(steps))):
        share_block = (_ahead(blocks, distance) == 0) & (_ahead(other_blocks, distance) == 0)
        signs = np.sign(_ahead(steps, distance)) * np.sign(_ahead(other_steps, distance))
        same += int((share_block & (signs > 0)).sum())
        opposite += int((share_block & (signs < 0)).sum())
        together += int((share_block & (signs == 0)).sum())
    return same, opposite, together


def _ahead(values: IntArray, distance: int) -> IntArray:
    """int64 [L - distance]: by how much the value so many places ahead is greater."""
    return values[distance:] - values[:-distance]

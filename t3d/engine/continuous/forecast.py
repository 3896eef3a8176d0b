"""What the device will be doing: the host sizes a step before the report of the one before has come.

Under the rules with a fixed quota the forecast is exact. The others may reveal more, so that blocks finish sooner: for
these the room is estimated from what they did so far. Room that is short costs a request a wait of one step, never a
token.

Shape legend: S slots, n rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from t3d.engine.continuous.state import Field, Row
from t3d.engine.continuous.steps import Event, Report

EXACT_RULES = frozenset({"sequential", "low_confidence_static"})
MARGIN = 1.25
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one step: n rows, c commit places, m sampling places."""

    rows: int
    commits: int
    samples: int


class Forecast:
    """Each slot's phase as of the last report, and where it will be one or two steps later.

    Attributes:
        start: int64 [S] first position of the active block.
        masked: int64 [S] unknown tokens in it.
        step: int64 [S] steps taken in it.
        must_commit: bool [S] the block before it is not committed.
        is_over: bool [S].
    """

    _PHASE = ("start", "masked", "step", "must_commit", "is_over")

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.block_size = block_size
        self.start, self.masked, self.step, self.steps_per_block, self.max_length = (
            np.zeros(num_slots, dtype=np.int64) for _ in range(5)
        )
        self.must_commit, self.is_over, self.is_exact = (np.zeros(num_slots, dtype=bool) for _ in range(3))
        self._closing_share = 0.5  # of the rows under other rules that take part in a step
        self._masked_share = 1.0  # of their positions

    def enter(self, slot: int, row: Row, mask_token_id: int, rule: str) -> None:
        """A request starts, or goes on, from a state row."""
        numbers, active = row[0], row[4]
        self.start[slot] = int(numbers[Field.BLOCK_START])
        self.masked[slot] = int((active == mask_token_id).sum())
        self.step[slot] = int(numbers[Field.STEP_IN_BLOCK])
        self.must_commit[slot] = bool(numbers[Field.HAS_UNCOMMITTED])
        self.is_over[slot] = False
        self.steps_per_block[slot] = int(numbers[Field.STEPS_PER_BLOCK])
        self.max_length[slot] = int(numbers[Field.MAX_LENGTH])
        self.is_exact[slot] = rule in EXACT_RULES

    def correct(self, slots: np.ndarray, report: np.ndarray) -> None:
        """Take in a report, int32 [n, columns], of the rows in slots [n]."""
        events = report[:, Report.EVENTS]
        took_part, closed = (events & Event.TOOK_PART) > 0, (events & Event.FINISHED_BLOCK) > 0
        self.start[slots] = report[:, Report.BLOCK_START] + self.block_size * closed
        self.masked[slots] = report[:, Report.NUM_MASKED]
        self.step[slots] = report[:, Report.STEP_IN_BLOCK]
        self.must_commit[slots] = np.where(took_part, closed, self.must_commit[slots])
        self.is_over[slots] |= (events & Event.IS_OVER) > 0
        adaptive = took_part & ~self.is_exact[slots]
        if adaptive.any():
            self._closing_share += SMOOTHING * (closed[adaptive].mean() - self._closing_share)
            masked_share = report[adaptive, Report.NUM_MASKED].mean() / self.block_size
            self._masked_share += SMOOTHING * (masked_share - self._masked_share)

    def after(self, slots: np.ndarray, shape: Shape) -> Forecast:
        """The forecast behind a step over these slots, int64 [n], that is under way: every rule reveals its least."""
        ahead = copy(self)
        for name in self._PHASE:
            setattr(ahead, name, getattr(self, name).copy())
        ahead._advance(slots[self._takes_part(slots, shape)])
        return ahead

    def _takes_part(self, slots: np.ndarray, shape: Shape) -> np.ndarray:
        """Who finds room, as `steps.begin` decides it; bool [n]."""
        must_commit, masked = self.must_commit[slots], self.masked[slots]
        has_place = ~must_commit | (must_commit.cumsum() <= shape.commits)
        return has_place & (masked.cumsum() <= shape.samples) & ~self.is_over[slots]

    def _advance(self, slots: np.ndarray) -> None:
        per_step, rest = np.divmod(self.block_size, self.steps_per_block[slots])
        step = self.step[slots]
        masked = np.maximum(self.masked[slots] - per_step - (step < rest), 0)
        closes = masked == 0
        self.start[slots] += self.block_size * closes
        self.masked[slots] = np.where(closes, self.block_size, masked)
        self.step[slots] = np.where(closes, 0, step + 1)
        self.must_commit[slots] = closes
        self.is_over[slots] |= closes & (self.start[slots] >= self.max_length[slots])

    def shape(self, slots: np.ndarray) -> Shape:
        """The room that a step over these slots takes, int64 [n]."""
        exact = slots[self.is_exact[slots]]
        commits = int(self.must_commit[exact].sum())
        samples = int(self.masked[exact].sum())
        num_adaptive = len(slots) - len(exact)
        if num_adaptive:
            adaptive = slots[~self.is_exact[slots]]
            likely = math.ceil(MARGIN * self._closing_share * num_adaptive)
            commits += min(num_adaptive, max(int(self.must_commit[adaptive].sum()), likely))
            samples += min(num_adaptive, math.ceil(MARGIN * self._masked_share * num_adaptive)) * self.block_size
        return Shape(len(slots), commits, max(samples, self.block_size))


def ladder(limit: int) -> list[int]:
    """Batch sizes that graphs are made for: 1, 2, 4, 8, then steps of about a quarter up to `limit`."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < limit:
        sizes.append(sizes[-1] + max(8, 2 ** (sizes[-1].bit_length() - 3)))
    return [*(size for size in sizes if size < limit), limit]


def rounded(shape: Shape, sizes: Sequence[int], block_size: int, fractions: int = 4) -> Shape:
    """The next larger shape among a manageable number: rows of the ladder, quarters of them to commit and to sample."""
    rows = next(size for size in sizes if size >= shape.rows)
    return Shape(
        rows,
        _up_to_fraction(shape.commits, rows, fractions),
        max(block_size, _up_to_fraction(shape.samples, rows * block_size, fractions)),
    )


def _up_to_fraction(count: int, whole: int, fractions: int) -> int:
    """`count` rounded up to j/fractions of `whole`, j = 0 .. fractions."""
    share = math.ceil(count * fractions / whole)
    return min(whole, math.ceil(share * whole / fractions))

"""Rows of another source beside those that a run learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from t3d.corruption import TrainingRow


def mixed(rows: Sequence[TrainingRow], others: Sequence[TrainingRow], share: float, seed: int) -> list[TrainingRow]:
    """The rows, and after them so many others that these are `share` of all.

    Which of the others, hangs on (seed, row id) alone. Where there are too few they come again, each time under
    another id and so with noise of its own; no id is that of one of `rows`.

    Args:
        rows: not empty.
        others: not empty.
        share: of all rows, in (0, 1); their number is rounded.
        seed: of the choice.
    """

    def place(row: TrainingRow) -> bytes:
        return hashlib.sha256(f"{seed}/{row.row_id}".encode()).digest()

    drawn = sorted(others, key=place)
    count = round(share / (1 - share) * len(rows))
    chosen = (divmod(index, len(drawn)) for index in range(count))
    return [*rows, *(replace(drawn[at], row_id=f"{drawn[at].row_id} mixed in {turn}") for turn, at in chosen)]

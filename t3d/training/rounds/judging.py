"""Which round left the best student, and whether further rounds are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t3d.training.rounds.plan import BEST
from t3d.training.run.folder import read_metrics
from t3d.training.run.watching import read_best


def best_round(scores: Sequence[float]) -> int:
    """Number (from 1) of the round with the highest score, of equals the earliest."""
    return max(range(len(scores)), key=scores.__getitem__) + 1


def is_enough(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` rounds brought nothing better than one before them; 0 always hopes."""
    return 0 < patience <= len(scores) - best_round(scores)


def accuracy_of(training: Path, of_best: bool) -> float:
    """Of the student that a finished training left, at the setting that tells which is best.

    Args:
        training: its run folder.
        of_best: of its best student, not of its last one.

    Returns:
        the share of right answers in its latest evaluation; 0 if every evaluation was broken off.
    """
    best = read_best(training / BEST)
    if best is None:
        return 0.0
    if of_best:
        return best.accuracy
    name = f"accuracy@{best.tokens_per_step}"
    found = [line[name] for line in read_metrics(training) if name in line]
    return found[-1] if found else 0.0

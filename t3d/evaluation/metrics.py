"""Figures of an evaluation: pure functions of counts and of small arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Z_95 = 1.959963984540054
NUM_RESAMPLES = 10_000
RESAMPLES_AT_A_TIME_NUMBERS = 2**22
"""Numbers in the largest [resamples, problems] array."""
AUP_ALPHA = 3.0
AUP_ACCURACY_DROP = 5.0
"""Percentage points below the accuracy of the slowest point from which points no longer count."""


def wilson_interval(num_right: int, num_problems: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); behaves at 0 and 1, where the normal one does not."""
    if num_problems == 0:
        return 0.0, 1.0
    share = num_right / num_problems
    scale = 1 + Z_95**2 / num_problems
    centre = (share + Z_95**2 / (2 * num_problems)) / scale
    spread = share * (1 - share) / num_problems + Z_95**2 / (4 * num_problems**2)
    half = Z_95 * math.sqrt(spread) / scale
    low, high = min(share, centre - half), max(share, centre + half)  # rounding must not exclude the share
    return max(0.0, low), min(1.0, high)


def bootstrap_interval(shares: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of a mean over problems (Efron 1979): problems are drawn again with replacement.

    Samples of one problem are alike, so a problem is drawn with all of its samples.

    Args:
        shares: of right samples, one a problem, [num_problems], at least one.
        seed: of the draws: the same shares give the same interval.
    """
    values, generator = np.asarray(shares, dtype=np.float64), np.random.default_rng(seed)
    at_a_time = max(1, RESAMPLES_AT_A_TIME_NUMBERS // len(values))
    means = [
        values[generator.integers(len(values), size=(min(at_a_time, NUM_RESAMPLES - done), len(values)))].mean(axis=1)
        for done in range(0, NUM_RESAMPLES, at_a_time)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k responses to a problem is right.

    1 - C(n - c, k) / C(n, k) as a product, which does not overflow (Chen et al. 2021, arXiv 2107.03374, eq. 1 and
    figure 3).

    Args:
        num_samples: n responses to the problem; num_right: c of them are right.
        k: at most n.
    """
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / number for number in range(num_samples - num_right + 1, num_samples + 1))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 .. 1) of `values` lie, between neighbours by straight line; 0.0 of nothing."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share)) if len(values) else 0.0


def accuracy_under_parallelism(points: Sequence[tuple[float, float]], best_accuracy: float) -> float:
    """AUP: the area under a method's curve of accuracy over parallelism, where lost accuracy weighs.

    Qian et al., d3LLM (arXiv 2601.07568; "AUP: when Accuracy Meets Parallelism", hao-ai-lab, 2025). With the points
    (rho_i, y_i) sorted by rho, those with y_i < y_1 - 5 left out, and W(y) = min(exp(-3 (1 - y / y_max)), 1):

        AUP = rho_1 y_1 + sum_{i>=2} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2

    Args:
        points: (tokens per forward, accuracy in percent) of one method's settings; none gives 0.
        best_accuracy: y_max, the highest accuracy in percent of any of the compared methods on the benchmark.
    """
    if not points:
        return 0.0
    ordered = sorted(points)
    first_parallelism, first_accuracy = ordered[0]
    counted = [(rho, y) for rho, y in ordered if y >= first_accuracy - AUP_ACCURACY_DROP]
    weighted = [(rho, y * _accuracy_weight(y, best_accuracy)) for rho, y in counted]
    trapezoids = (
        (right_rho - left_rho) * (left + right) / 2 for (left_rho, left), (right_rho, right) in pairwise(weighted)
    )
    return first_parallelism * first_accuracy + sum(trapezoids)


def _accuracy_weight(accuracy: float, best_accuracy: float) -> float:
    """W: 1 at the best accuracy, less the further below."""
    if best_accuracy <= 0:
        return 1.0  # nobody got anything right: every accuracy is 0, and so is the area
    return min(math.exp(-AUP_ALPHA * (1 - accuracy / best_accuracy)), 1.0)

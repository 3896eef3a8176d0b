"""Figures of an evaluation: pure functions of counts and of small arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
NUM_RESAMPLES = 10_000
ROUNDING = 1e-12
"""Differences of shares that are further apart than this differ: 2/3 - 1/3 and 1 - 2/3 do not."""
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
        shares: of right samples, or any other figure, one a problem, [num_problems], at least one.
        seed: of the draws: the same shares give the same interval.
    """
    return _crossed_interval(np.asarray(shares, dtype=np.float64)[None], seed)


def seed_mean_interval(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Accuracy over training seeds and problems, with its 95% interval: (mean, low, high), shares.

    Every seed answers the same problems, so seeds and problems are crossed, not nested: a resample draws seeds with
    replacement, and problems with replacement *once for all of its seeds* (the pigeonhole bootstrap of Owen 2007,
    Annals of Applied Statistics 1). Drawing problems anew for each seed would treat a problem that is hard for all
    of them as so many independent ones, and make the interval too narrow. With one seed, it is that of its problems
    alone and says nothing of other seeds. With few seeds it is a compromise (docs/evaluation.md has its coverage).

    Args:
        right: bool [num_seeds, num_problems], or shares of right samples; at least one of each. Where all are right or
            all are wrong, resampling finds no spread: then Wilson's interval of the problems.
    """
    shares = _matrix(right)
    mean, num_problems = float(shares.mean()), shares.shape[1]
    if mean in (0.0, 1.0):
        return mean, *wilson_interval(round(mean) * num_problems, num_problems)
    return mean, *_crossed_interval(shares)


def paired_difference(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> tuple[float, float, float]:
    """How much more often a is right than b on the same problems, with its 95% interval: (difference, low, high).

    Seeds and problems are drawn again as in `seed_mean_interval`, for both at once: what is hard for both cancels. The
    seeds are paired too: seed i of a with seed i of b, which is right where they share rollouts and order of data.

    Args:
        right_a, right_b: bool [num_seeds, num_problems], or shares of right samples; the same seeds and problems in the
            same order. Where all pairs differ alike, as where none does, resampling finds no spread: then as far to
            both sides as Wilson's interval of a share of 0 reaches.

    Returns:
        shares, -1 .. 1; times 100 these are points.

    Raises:
        ValueError: they differ in shape.
    """
    a, b = _matrix(right_a), _matrix(right_b)
    if a.shape != b.shape:
        raise ValueError(f"pairs need the same seeds and problems, not {a.shape} and {b.shape}")
    differences = a - b
    mean = float(differences.mean())
    if np.ptp(differences) < ROUNDING:
        reach = wilson_interval(0, differences.shape[1])[1]
        return mean, max(-1.0, mean - reach), min(1.0, mean + reach)
    return mean, *_crossed_interval(differences)


def mcnemar_p(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are two models right equally often on the same problems?

    Of the n problems that just one of them gets right, the number that a gets is Binomial(n, 1/2) if they are. It is of
    one response each: the seed that it was trained with is taken as given.

    Args:
        right_a, right_b: bool [num_problems], in the same order.

    Returns:
        1.0 where no problem sets them apart.

    Raises:
        ValueError: they differ in shape.
    """
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need the same problems, one response each, not {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    num_apart = only_a + only_b
    tail = sum(math.comb(num_apart, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**num_apart)


def _matrix(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shares, [num_seeds, num_problems]."""
    shares = np.asarray(right, dtype=np.float64)
    if shares.ndim != 2 or not shares.size:
        raise ValueError(f"answers must be [num_seeds, num_problems] with at least one of each, not {shares.shape}")
    return shares


def _crossed_interval(figures: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean of [num_seeds, num_problems], where rows and columns are drawn again."""
    seeds, problems = _draws(*figures.shape, seed)
    at_a_time = max(1, RESAMPLES_AT_A_TIME_NUMBERS // figures.shape[1])
    sums = []
    for start in range(0, NUM_RESAMPLES, at_a_time):
        part = slice(start, start + at_a_time)
        sums.append(((problems[part].astype(np.float64) @ figures.T) * seeds[part]).sum(axis=1))  # whole ones exactly
    low, high = np.quantile(np.concatenate(sums) / figures.size, (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _draws(num_seeds: int, num_problems: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """How often each seed and each problem is drawn in each resample: [NUM_RESAMPLES, num_seeds], [.., num_problems].

    A report asks for hundreds of intervals of figures of one shape; drawing is most of the work.
    """
    generator = np.random.default_rng(seed)
    at_a_time = max(1, RESAMPLES_AT_A_TIME_NUMBERS // num_problems)
    parts = []
    for done in range(0, NUM_RESAMPLES, at_a_time):
        count = min(at_a_time, NUM_RESAMPLES - done)
        problems = generator.integers(num_problems, size=(count, num_problems))
        seeds = generator.integers(num_seeds, size=(count, num_seeds))
        parts.append((_counts(seeds, num_seeds), _counts(problems, num_problems)))
    seed_counts, problem_counts = zip(*parts, strict=True)
    return np.concatenate(seed_counts), np.concatenate(problem_counts)


def _counts(draws: NDArray[np.int64], size: int) -> NDArray[np.uint16]:
    """How often each of 0 .. size - 1 stands in each row: [rows, size]."""
    rows = len(draws)
    places = draws + size * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * size).reshape(rows, size).astype(np.uint16)


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

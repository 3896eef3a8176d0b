"""Metrics: arithmetic by hand, figures of other programs, and what must hold for any input."""

import itertools
import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.evaluation.metrics import (
    accuracy_under_parallelism,
    bootstrap_interval,
    pass_at_k,
    percentile,
    wilson_interval,
)

PERCENT = st.floats(0, 100)
SPEED = st.floats(0.5, 16)


@pytest.mark.parametrize(
    "right, count, low, high",
    [
        (8, 10, 0.490, 0.943),  # figures of other programs
        (0, 10, 0.000, 0.278),
        (10, 10, 0.722, 1.000),
        (50, 100, 0.404, 0.596),
        (1, 1, 0.207, 1.000),
        (0, 0, 0.000, 1.000),
    ],
)
def test_wilson_interval(right, count, low, high):
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=6e-4)


def test_wilson_interval_is_symmetric_and_narrows():
    for right in range(8):
        low, high = wilson_interval(right, 7)
        assert wilson_interval(7 - right, 7) == pytest.approx((1 - high, 1 - low))
        assert 0 <= low <= right / 7 <= high <= 1
        longer = wilson_interval(10 * right, 70)
        assert longer[1] - longer[0] < high - low


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    num_samples, num_right, k = case
    subsets = list(itertools.combinations([place < num_right for place in range(num_samples)], k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(share)


def test_pass_at_k_of_many_samples():
    exact = 1 - math.comb(990, 100) / math.comb(1000, 100)
    assert pass_at_k(1000, 10, 100) == pytest.approx(exact, rel=1e-12)


def test_bootstrap_interval_of_many_problems_is_the_normal_one():
    shares = [0.0, 0.5, 1.0, 1.0] * 250
    mean = 0.625
    deviation = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares) / len(shares))
    half = NormalDist().inv_cdf(0.975) * deviation
    assert bootstrap_interval(shares) == pytest.approx((mean - half, mean + half), abs=half / 15)


def test_bootstrap_interval_of_two_problems():
    """Resamples of (0, 1) have the means 0, 1/2, 1/2, 1, each a quarter of the time."""
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9))
def test_bootstrap_interval_is_seeded_and_lies_among_the_shares(shares):
    low, high = bootstrap_interval(shares)
    assert min(shares) <= low <= high <= max(shares)
    assert bootstrap_interval(shares) == (low, high)


def test_percentile():
    assert percentile([], 0.5) == 0.0
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile(list(range(101)), 0.95) == pytest.approx(95.0)


def test_aup_by_hand():
    # the best of all compared is 80; W(80) = 1, W(76) = exp(-0.15)
    points = [(1.0, 80.0), (2.0, 76.0)]
    low = 76 * math.exp(-3 * (1 - 76 / 80))
    assert accuracy_under_parallelism(points, 80.0) == pytest.approx(80 + (80 + low) / 2)
    # a third point more than 5 points below the first does not count, one exactly 5 below does
    assert accuracy_under_parallelism([*points, (4.0, 74.9)], 80.0) == accuracy_under_parallelism(points, 80.0)
    last = 75 * math.exp(-3 * (1 - 75 / 80))
    expected = 80 + (80 + low) / 2 + 2 * (low + last) / 2
    assert accuracy_under_parallelism([*points, (4.0, 75.0)], 80.0) == pytest.approx(expected)
    # the first term is not weighted, however far the best of others lies above
    assert accuracy_under_parallelism([(1.5, 40.0)], 80.0) == 60.0


def test_aup_of_nothing():
    assert accuracy_under_parallelism([], 50.0) == 0.0
    assert accuracy_under_parallelism([(1.0, 0.0), (3.0, 0.0)], 0.0) == 0.0


@given(st.lists(SPEED, min_size=1, max_size=6), st.floats(1, 100))
def test_aup_of_constant_accuracy_is_a_rectangle(speeds, accuracy):
    points = [(speed, accuracy) for speed in speeds]
    assert accuracy_under_parallelism(points, accuracy) == pytest.approx(max(speeds) * accuracy)


@given(st.lists(st.tuples(SPEED, PERCENT), min_size=1, max_size=6), st.randoms())
def test_aup_takes_points_in_any_order_and_never_exceeds_the_rectangle(points, random):
    best = max(accuracy for _, accuracy in points)
    area = accuracy_under_parallelism(points, best)
    shuffled = random.sample(points, len(points))
    assert accuracy_under_parallelism(shuffled, best) == area
    assert 0 <= area <= max(speed for speed, _ in points) * best * (1 + 1e-12)


@given(
    st.lists(st.tuples(SPEED, st.floats(56, 60)), min_size=2, max_size=6, unique_by=lambda point: point[0]),
    st.data(),
)
def test_aup_grows_with_accuracy_at_the_faster_points(points, data):
    """All within 5 points of the first, so that none drops out; more at the first point may push others out."""
    points.sort()
    raised = data.draw(st.integers(1, len(points) - 1))
    gain = data.draw(st.floats(0, 1))
    better = [(speed, y + gain * (place == raised)) for place, (speed, y) in enumerate(points)]
    assert accuracy_under_parallelism(better, 70.0) >= accuracy_under_parallelism(points, 70.0)


@given(st.lists(st.tuples(SPEED, PERCENT), min_size=1, max_size=6), st.floats(1, 2))
def test_aup_falls_when_others_are_better(points, factor):
    best = max(accuracy for _, accuracy in points)
    assert accuracy_under_parallelism(points, best * factor) <= accuracy_under_parallelism(points, best) * (1 + 1e-12)

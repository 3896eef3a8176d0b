"""Metrics: arithmetic by hand, figures of other programs, and what must hold for any input."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.evaluation.diversity import majority_share, num_answers, surprisal, vote_of
from t3d.evaluation.metrics import (
    accuracy_under_parallelism,
    bootstrap_interval,
    mcnemar_p,
    paired_difference,
    pass_at_k,
    percentile,
    seed_mean_interval,
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


# --- seeds and pairs ---


def array(*rows):
    """ "110" -> a seed that is right on the first two of three problems."""
    return np.array([[answer == "1" for answer in row] for row in rows])


matrices = st.tuples(st.integers(1, 2), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(matrices)
@settings(max_examples=25, deadline=None)
def test_seeds_and_problems_are_drawn_crosswise(rows):
    """Against all resamples: every draw of seeds with every draw of problems, the same problems for all seeds."""
    right = np.array(rows, dtype=float)
    mean, low, high = seed_mean_interval(right)
    assert mean == right.mean()
    if mean in (0, 1):
        assert (low, high) == wilson_interval(int(mean) * right.shape[1], right.shape[1])
        return
    num_seeds, num_problems = right.shape
    means = np.array(
        [
            right[np.ix_(seeds, problems)].mean()
            for seeds in itertools.product(range(num_seeds), repeat=num_seeds)
            for problems in itertools.product(range(num_problems), repeat=num_problems)
        ]
    )
    slack, near = 0.01, 1e-9
    assert (means < low - near).mean() - slack <= 0.025 <= (means <= low + near).mean() + slack
    assert (means <= high - near).mean() - slack <= 0.975 <= (means <= high + near).mean() + slack


def test_one_seed_is_a_bootstrap_over_problems():
    right = array("1101001110")
    assert seed_mean_interval(right) == (0.6, *bootstrap_interval(right[0]))


def test_seeds_that_agree_on_every_problem_tell_no_more_than_one():
    """Drawn anew for each seed, the problems would make the interval 1.7 times too narrow."""
    row = "1101001110" * 20
    one, three = seed_mean_interval(array(row)), seed_mean_interval(array(row, row, row))
    assert three == pytest.approx(one, abs=0.01)


def test_seeds_that_differ_on_every_problem_widen_the_interval():
    """The mean of two drawn of (all right, all wrong) is 0, 1/2, 1/2 or 1."""
    assert seed_mean_interval(array("1111", "0000")) == (0.5, 0.0, 1.0)


def test_paired_difference_by_hand():
    # one problem of four sets them apart: resamples of (1, 0, 0, 0) have k/4 with Binomial(4, 1/4) = k;
    # P(0) = 0.316, P(<= 2) = 0.949, P(<= 3) = 0.996
    assert paired_difference(array("1100"), array("0100")) == (0.25, 0.0, 0.75)
    assert paired_difference(array("0100"), array("1100")) == (-0.25, -0.75, 0.0)
    # two seeds, each apart on all problems in its own direction: (1 + 1)/2, 0, 0, (-1 - 1)/2
    assert paired_difference(array("11", "00"), array("00", "11")) == (0.0, -1.0, 1.0)


def test_pairs_that_differ_alike_have_no_point_for_an_interval():
    reach = wilson_interval(0, 4)[1]
    assert paired_difference(array("1010"), array("1010")) == (0.0, -reach, reach)
    assert paired_difference(array("1111"), array("0000")) == (1.0, 1 - reach, 1.0)
    # a third everywhere, though not to the last bit
    found = paired_difference(np.array([[2 / 3, 1 / 3, 1.0, 1 / 3]]), np.array([[1 / 3, 0.0, 2 / 3, 0.0]]))
    assert found == pytest.approx((1 / 3, 1 / 3 - reach, 1 / 3 + reach))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9))
@settings(max_examples=25, deadline=None)
def test_what_both_share_cancels(pairs):
    """Problems that both solve are of no more account than problems that neither does, and direction is a sign."""
    a, b = np.array(pairs).T
    difference, low, high = paired_difference(a[None], b[None])
    assert difference == pytest.approx(a.mean() - b.mean())
    assert low <= difference <= high
    alike = a & b
    assert paired_difference((a & ~alike)[None], (b & ~alike)[None]) == (difference, low, high)
    if difference not in (0, 1, -1):
        assert paired_difference(b[None], a[None])[0] == -difference


def test_pairing_is_narrower_than_the_two_intervals_where_the_same_problems_are_hard():
    hard = np.random.default_rng(0).random(400) < 0.5
    a, b = hard[None], (hard & (np.arange(400) % 20 != 0))[None]
    _, low, high = paired_difference(a, b)
    (_, a_low, a_high), (_, b_low, b_high) = map(seed_mean_interval, (a, b))
    assert low > 0
    assert a_low < b_high
    assert high - low < (a_high - a_low + b_high - b_low) / 3


def test_mcnemar_by_hand():
    # a alone right 5 times, b alone once: 2 (C(6, 0) + C(6, 1)) / 2^6
    a, b = array("1111100011")[0], array("0000010011")[0]
    assert mcnemar_p(a, b) == mcnemar_p(b, a) == 14 / 64
    assert mcnemar_p(a, a) == 1.0
    assert mcnemar_p(array("10")[0], array("01")[0]) == 1.0
    assert mcnemar_p(np.ones(3000, dtype=bool), np.zeros(3000, dtype=bool)) == 0.0  # 2^-2999


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_mcnemar_is_the_share_of_coins_at_least_as_one_sided(won):
    coins = [abs(2 * sum(each) - len(won)) for each in itertools.product((0, 1), repeat=len(won))]
    share = sum(each >= abs(2 * sum(won) - len(won)) for each in coins) / len(coins)
    assert mcnemar_p(np.array(won), ~np.array(won)) == pytest.approx(share)


def test_pairs_of_different_problems_are_refused():
    for a, b in ((array("10"), array("1")), (array("1", "0"), array("1"))):
        with pytest.raises(ValueError, match="the same"):
            paired_difference(a, b)
        with pytest.raises(ValueError, match="the same"):
            mcnemar_p(a.ravel(), b.ravel())
    for wrong in (np.array([True]), np.zeros((2, 0))):
        with pytest.raises(ValueError, match="num_seeds, num_problems"):
            seed_mean_interval(wrong)


# --- what sampling finds ---


def votes(text):
    """ "R77-" -> a right answer, 7 twice, none."""
    return [vote_of(None if each == "-" else each, each == "R") for each in text]


@pytest.mark.parametrize(
    "text, share, count",
    [
        ("RR7", 1, 2),
        ("R77", 0, 2),
        ("R7", 1 / 2, 2),
        ("RR7788", 1 / 3, 3),
        ("778", 0, 2),
        ("R---", 1, 1),  # giving none is no answer, and no vote
        ("R77--", 0, 2),
        ("----", 0, 0),
        ("1122", 0, 2),
    ],
)
def test_majority_by_hand(text, share, count):
    assert majority_share(votes(text)) == share
    assert num_answers(votes(text)) == count


@given(st.text("R789-", min_size=1, max_size=9), st.randoms())
def test_majority_is_the_same_in_any_order_and_grows_with_right_votes(text, random):
    shuffled = "".join(random.sample(text, len(text)))
    assert majority_share(votes(shuffled)) == majority_share(votes(text))
    assert majority_share(votes(text + "R")) >= majority_share(votes(text))
    assert majority_share(votes("R" * len(text) + text)) >= 1 / 2


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("18", "18.0", True),
        ("-3", "-3.00", True),
        ("0", "-0", True),
        ("1,234", "1234", True),
        (r"1\,234", "1,234", True),
        ("$18", "18.", True),
        ("x + 1", "x+1", True),
        ("18", "19", False),
        ("1" + 40 * "0", "1" + 39 * "0" + "1", False),
        ("1,2", "12", False),
        ("(1, 2)", "(2, 1)", False),
        ("x+1", "1+x", False),  # the same to math-verify, which is not asked
    ],
)
def test_wrong_answers_are_the_same_number_or_the_same_text(one, other, same):
    assert (vote_of(one, False) == vote_of(other, False)) == same
    assert vote_of(one, True) == vote_of(other, True) != vote_of(one, False)


def test_surprisal_by_hand():
    assert surprisal([]) == 0
    assert surprisal([1.0, 0.5, 0.25]) == pytest.approx(3 * math.log(2))
    assert surprisal([0.0]) == pytest.approx(149 * math.log(2))


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

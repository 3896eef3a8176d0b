"""Losses against arithmetic written out by hand; the registry refuses what it does not know in one line."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.corruption import LossTokens
from t3d.errors import RequestError
from t3d.objectives import OBJECTIVES, Scores, build_objective
from t3d.objectives.base import mean_per_example, sum_per_example
from t3d.objectives.path import path_loss, path_weights

any_speed = settings(deadline=None)


def tokens_of(example, ranks=None, weights=None, num_in_step=None, block_size=4, turns=None):
    """`LossTokens` of tokens that belong to the examples listed."""
    number = max(example) + 1
    return LossTokens(
        targets=torch.zeros(len(example), dtype=torch.int64),
        ranks=torch.tensor(ranks if ranks is not None else [0] * len(example)),
        turns=torch.tensor(turns if turns is not None else [0] * len(example)),
        weights=torch.tensor(weights if weights is not None else [1.0] * len(example)),
        draw_keys=torch.zeros(len(example), dtype=torch.int64),
        example=torch.tensor(example),
        num_examples=number,
        num_examples_in_step=num_in_step or number,
        block_size=block_size,
    )


def scores_of(real, fake=None, reference_real=None, reference_fake=None):
    parts = (None if part is None else torch.tensor(part) for part in (fake, reference_real, reference_fake))
    return Scores(torch.tensor(real), torch.zeros(len(real), dtype=torch.int64), *parts)


# Two examples of a step of four: the first has two hidden tokens, the second one.
EXAMPLE = [0, 0, 1]
SCORES = {
    "real": [-1.0, -3.0, -2.0],
    "reference_real": [-2.0, -2.0, -4.0],  # real gaps: (1 - 1) / 2 = 0 and 2
    "fake": [-4.0, -2.0, -1.0],
    "reference_fake": [-1.0, -1.0, -1.0],  # fake gaps: (-3 - 1) / 2 = -2 and 0
}
AT_0 = 0.6931471805599453  # -log sigma(0) = log 2
AT_02 = 0.5981388693815918  # -log sigma(0.1 * 2) = log(1 + e^-0.2), and -log(1 - sigma(0.1 * -2)) too


def test_trajectory_ce_by_hand():
    loss, _ = build_objective("trajectory_ce")(scores_of([-1.0, -3.0, -2.0]), tokens_of(EXAMPLE, num_in_step=4))
    assert loss.item() == pytest.approx((2.0 + 2.0) / 4)  # means 2 and 2, over the four examples of the step


def test_sft_by_hand():
    """Two tokens at t = 1/2 of L = 4 weigh 1 / (1/2 * 4) = 1/2 each; one at t = 1/4 of L = 2 weighs 2."""
    tokens = tokens_of(EXAMPLE, weights=[0.5, 0.5, 2.0], num_in_step=4)
    loss, _ = build_objective("sft")(scores_of([-1.0, -3.0, -2.0]), tokens)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.5 * 3 + 2 * 2) / 4)


def test_redi_is_sft_on_rollouts():
    tokens = tokens_of(EXAMPLE, weights=[0.5, 0.5, 2.0], num_in_step=4)
    loss, _ = build_objective("redi")(scores_of([-1.0, -3.0, -2.0]), tokens)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.5 * 3 + 2 * 2) / 4)
    assert OBJECTIVES["redi"].needs_trajectories
    assert not OBJECTIVES["sft"].needs_trajectories


@pytest.mark.parametrize("name", ["dparallel", "d3llm"])
def test_certainty_where_the_argmax_is_right_by_hand(name):
    """Three examples of a step of four: two of three tokens right, one of one, none of two."""
    scores = scores_of([-1.0, -3.0, -2.0, -4.0, -1.0, -5.0])
    scores.argmax = torch.tensor([0, 7, 0, 0, 5, 5])  # the clean token is 0
    scores.entropy = torch.tensor([0.5, 9.0, 0.1, 0.4, 8.0, 7.0])
    tokens = tokens_of([0, 0, 0, 1, 2, 2], num_in_step=4)
    cross_entropy, entropy = (2 + 4 + 3) / 4, (0.3 + 0.4 + 0) / 4
    loss, metrics = build_objective(name)(scores, tokens)
    assert metrics["cross_entropy"].item() == pytest.approx(cross_entropy)
    assert metrics["entropy"].item() == pytest.approx(entropy)
    assert loss.item() == pytest.approx(cross_entropy + 2 * entropy)
    loss, _ = build_objective(name, entropy_weight=0.5)(scores, tokens)
    assert loss.item() == pytest.approx(cross_entropy + 0.5 * entropy)


def test_certainty_pulls_at_right_tokens_alone():
    scores = scores_of([-1.0, -3.0, -2.0])
    scores.argmax, scores.entropy = torch.tensor([0, 7, 0]), torch.tensor([0.5, 9.0, 0.1], requires_grad=True)
    build_objective("dparallel")(scores, tokens_of(EXAMPLE))[0].backward()
    assert scores.entropy.grad.tolist() == [1.0, 0.0, 1.0]  # 2 * 1 / (right tokens 1) / (examples 2)


def test_entropy_is_asked_for_at_the_objectives_temperature():
    assert build_objective("dparallel").needs_entropy_at == 0.5
    assert build_objective("d3llm", entropy_temperature=0.7).needs_entropy_at == 0.7
    assert build_objective("t3d").needs_entropy_at is None


def test_tad_by_hand():
    """Example 0: two near tokens and a far one; example 1: near ones only; example 2: a far one only."""
    scores = scores_of([-1.0, -3.0, -2.0, -4.0, -1.0])
    scores.divergence = torch.tensor([9.0, 8.0, 0.5, 7.0, 0.3])
    tokens = tokens_of([0, 0, 0, 1, 2], turns=[1, 0, 2, 1, 3], num_in_step=4)
    loss, metrics = build_objective("tad")(scores, tokens)
    assert metrics["near"].item() == pytest.approx((2 + 4 + 0) / 4)
    assert metrics["far"].item() == pytest.approx((0.5 + 0 + 0.3) / 4)
    assert loss.item() == pytest.approx((6 + 0.8) / 4)
    loss, _ = build_objective("tad", delta=1, kl_weight=0.1)(scores, tokens)
    assert loss.item() == pytest.approx((3 + 0.1 * ((9 + 0.5) / 2 + 7 + 0.3)) / 4)
    loss, _ = build_objective("tad", delta=4)(scores, tokens)
    assert loss.item() == pytest.approx((2 + 4 + 1) / 4)  # all near: cross-entropy alone


def test_ddo_by_hand():
    loss, metrics = build_objective("ddo")(scores_of(**SCORES), tokens_of(EXAMPLE, num_in_step=4))
    assert metrics["ddo_real"].item() == pytest.approx((AT_0 + AT_02) / 4)
    assert metrics["ddo_fake"].item() == pytest.approx(0.5 * (AT_02 + AT_0) / 4)
    assert metrics["real_gap"].item() == pytest.approx((0 + 2) / 4)
    assert metrics["fake_gap"].item() == pytest.approx((-2 + 0) / 4)
    assert loss.item() == pytest.approx(1.5 * (AT_0 + AT_02) / 4)


def test_ddo_options_by_hand():
    loss, _ = build_objective("ddo", alpha=2.0, beta=0.2)(scores_of(**SCORES), tokens_of(EXAMPLE, num_in_step=2))
    at_04 = math.log(1 + math.exp(-0.4))
    assert loss.item() == pytest.approx(3 * (AT_0 + at_04) / 2)


def test_path_by_hand():
    """B = 4, k = 2: levels of ranks below 2 and below 4."""
    tokens = tokens_of([0, 0, 0, 0, 1, 2, 2, 2], ranks=[0, 3, 1, 2, 3, 0, 0, 2])
    cross_entropy = torch.tensor([1.0, 4.0, 2.0, 3.0, 5.0, 1.0, 3.0, 8.0])
    losses = path_loss(cross_entropy, tokens, k=2)
    assert losses.tolist() == pytest.approx(
        [
            ((1 + 2) / 2 + (1 + 2 + 3 + 4) / 4) / 2,
            5.0,  # its first level is empty: one level is left
            ((1 + 3) / 2 + (1 + 3 + 8) / 3) / 2,  # two blocks: ranks count in each, levels go through both
        ]
    )


def test_t3d_by_hand():
    tokens = tokens_of(EXAMPLE, ranks=[0, 1, 3], num_in_step=4)
    loss, metrics = build_objective("t3d", path_k=1)(scores_of(**SCORES), tokens)
    # example 0: levels {0}, {0, 1}, {0, 1}, {0, 1} with means 1, 2, 2, 2; example 1: only the last level, 2
    path = ((1 + 2 + 2 + 2) / 4 + 2) / 4
    assert metrics["path"].item() == pytest.approx(path)
    assert metrics["ddo"].item() == pytest.approx(1.5 * (AT_0 + AT_02) / 4)
    assert loss.item() == pytest.approx(1.5 * (AT_0 + AT_02) / 4 + 0.2 * path)
    without, _ = build_objective("t3d", path_k=1, path_weight=0.0)(scores_of(**SCORES), tokens)
    assert without.item() == pytest.approx(1.5 * (AT_0 + AT_02) / 4)


def test_defaults_are_the_papers():
    objective = build_objective("t3d")
    assert objective.model_dump() == {"alpha": 0.5, "beta": 0.1, "path_weight": 0.2, "path_k": 4}


@pytest.mark.parametrize("name", ["ddo", "t3d"])
@pytest.mark.parametrize("real", [-1e4, 1e4])
@pytest.mark.parametrize("fake", [-1e4, 1e4])
def test_extreme_gaps_stay_finite(name, real, fake):
    scores = scores_of([real], [fake], [0.0], [0.0])
    scores.real.requires_grad_()
    scores.fake.requires_grad_()
    loss, metrics = build_objective(name)(scores, tokens_of([0]))
    loss.backward()
    assert all(math.isfinite(value) for value in [loss.item(), *(value.item() for value in metrics.values())])
    assert torch.isfinite(scores.real.grad).all()
    assert torch.isfinite(scores.fake.grad).all()
    expected = (1000.0 if real < 0 else 0.0) + (500.0 if fake > 0 else 0.0)  # beta |gap| where the sign is wrong
    assert metrics.get("ddo", loss.detach()).item() == pytest.approx(expected)


def test_ddo_pushes_up_the_real_and_down_the_fake_token():
    scores = scores_of(**SCORES)
    scores.real.requires_grad_()
    scores.fake.requires_grad_()
    build_objective("ddo")(scores, tokens_of(EXAMPLE))[0].backward()
    assert (scores.real.grad < 0).all()
    assert (scores.fake.grad > 0).all()
    # d/dx -log sigma(b x) = -b sigma(-b x): at gap 0 that is -0.1 / 2, over two tokens and two examples
    assert scores.real.grad[:2].tolist() == pytest.approx([-0.1 / 2 / 2 / 2] * 2)


# Path weights


@st.composite
def hidden_tokens(draw):
    """Ranks of the hidden tokens of some examples, and B."""
    block_size = draw(st.integers(1, 8))
    ranks = st.lists(st.integers(0, block_size - 1), max_size=12)
    return block_size, draw(st.lists(ranks, min_size=1, max_size=4).filter(any))


@given(hidden_tokens(), st.integers(1, 10))
@any_speed
def test_path_weights_are_the_formula_read_slowly(hidden, k):
    block_size, ranks = hidden
    example = [index for index, members in enumerate(ranks) for _ in members]
    tokens = tokens_of(example, [rank for members in ranks for rank in members], block_size=block_size)
    expected = []
    for members in ranks:
        weights = [0.0] * len(members)
        levels = [[i for i, rank in enumerate(members) if rank < (s + 1) * k] for s in range(-(-block_size // k))]
        levels = [level for level in levels if level]
        for level in levels:
            for i in level:
                weights[i] += 1 / len(levels) / len(level)
        expected += weights
    assert path_weights(tokens, k).tolist() == pytest.approx(expected, abs=1e-6)
    sums = sum_per_example(path_weights(tokens, k), tokens)
    for members, total in zip(ranks, sums.tolist(), strict=False):
        assert total == pytest.approx(1.0 if members else 0.0, abs=1e-5)


@given(hidden_tokens(), st.integers(0, 5))
@any_speed
def test_one_level_is_uniform(hidden, more):
    block_size, ranks = hidden
    example = [index for index, members in enumerate(ranks) for _ in members]
    tokens = tokens_of(example, [rank for members in ranks for rank in members], block_size=block_size)
    uniform = [1 / len(members) for members in ranks for _ in members]
    assert path_weights(tokens, block_size + more).tolist() == pytest.approx(uniform)


@given(hidden_tokens(), st.integers(1, 8))
@any_speed
def test_earlier_tokens_never_weigh_less(hidden, k):
    block_size, ranks = hidden
    members = max(ranks, key=len)
    weights = path_weights(tokens_of([0] * len(members), members, block_size=block_size), k).tolist()
    by_rank = [weight for _, weight in sorted(zip(members, weights, strict=True), key=lambda pair: pair[0])]
    assert all(early >= late - 1e-7 for early, late in pairwise(by_rank))


# Sums and means


def test_sums_and_means_per_example():
    tokens = tokens_of([0, 2, 0])
    values = torch.tensor([1.0, 5.0, 2.0])
    assert sum_per_example(values, tokens).tolist() == [3.0, 0.0, 5.0]
    assert mean_per_example(values, tokens).tolist() == [1.5, 0.0, 5.0]  # nothing hidden in example 1
    chosen = torch.tensor([False, False, True])
    assert mean_per_example(values, tokens, chosen).tolist() == [2.0, 0.0, 0.0]


# The registry


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("t4d", {}, ["t4d", *OBJECTIVES]),
        ("t3d", {"lambda": 0.2}, ["t3d", "lambda", "path_weight"]),
        ("t3d", {"path_k": 0}, ["t3d", "path_k"]),
        ("ddo", {"beta": 0}, ["ddo", "beta"]),
        ("ddo", {"alpha": -1}, ["ddo", "alpha"]),
        ("ddo", {"alpha": "much"}, ["ddo", "alpha"]),
        ("ddo", {"alpha": float("nan")}, ["ddo", "alpha"]),
        ("ddo", {"path_k": 4}, ["ddo", "path_k"]),
        ("sft", {"alpha": 0.5}, ["sft", "alpha"]),
        ("trajectory_ce", {"k": 4}, ["trajectory_ce", "k"]),
        ("redi", {"alpha": 0.5}, ["redi", "alpha"]),
        ("dparallel", {"entropy_temperature": 0}, ["dparallel", "entropy_temperature"]),
        ("dparallel", {"entropy_weight": -1}, ["dparallel", "entropy_weight"]),
        ("d3llm", {"rho": 0.5}, ["d3llm", "rho", "entropy_weight"]),
        ("tad", {"delta": 0}, ["tad", "delta"]),
        ("tad", {"kl_weight": -0.1}, ["tad", "kl_weight"]),
    ],
)
def test_unknown_and_wrong_options_are_one_line(name, options, said):
    with pytest.raises(RequestError) as refusal:
        build_objective(name, **options)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in said)

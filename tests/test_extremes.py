"""Numbers at the ends of their ranges: nothing overflows, and what comes out is what exact arithmetic gives."""

import math

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t3d.corruption import LossTokens
from t3d.engine.sampling import SamplingParams, draw_candidates
from t3d.models.scoring import LOWEST_LOGP, Teacher, score_tokens
from t3d.noise import draw_keys
from t3d.objectives import OBJECTIVES, Scores, build_objective

torch.set_num_threads(1)
any_speed = settings(deadline=None)

VOCAB, MASK = 8, 7
LOWEST = torch.tensor(LOWEST_LOGP).item()
"""In float32."""
LOGP = st.one_of(
    st.sampled_from([0.0, -1e-30, -1.0, -1e4, -3e29, LOWEST]),
    st.floats(LOWEST, 0.0, width=32),
    st.floats(-100.0, 0.0, width=32),
)
"""What the head can say: from `LOWEST_LOGP`, which a token of probability 0 has, to 0."""


def tokens_of(count, targets=None):
    """`count` tokens of one example, which is all of its step."""
    zeros = torch.zeros(count, dtype=torch.int64)
    ranks = torch.arange(count) % 4
    return LossTokens(targets if targets is not None else zeros, ranks, ranks, torch.ones(count), zeros, zeros, 1, 1, 4)


def scores_of(real, fake, reference_real, reference_fake):
    real, fake = (torch.as_tensor(each, dtype=torch.float32).requires_grad_() for each in (real, fake))
    others = (torch.as_tensor(each, dtype=torch.float32) for each in (reference_real, reference_fake))
    return Scores(real, torch.zeros(len(real), dtype=torch.int64), fake, *others)


@given(LOGP, LOGP, LOGP, LOGP)
@example(-1e4, 0.0, 0.0, -1e4)
@example(LOWEST, 0.0, 0.0, LOWEST)
@example(LOWEST, LOWEST, LOWEST, LOWEST)
@any_speed
def test_ddo_of_any_log_probabilities_is_that_of_exact_arithmetic(real, fake, reference_real, reference_fake):
    scores = scores_of([real], [fake], [reference_real], [reference_fake])
    loss, metrics = build_objective("ddo")(scores, tokens_of(1))
    loss.backward()
    gaps = [mpmath.mpf(left.item()) - right.item() for left, right in _pairs(scores)]
    towards = [-gaps[0] / 10, gaps[1] / 10]  # beta is 0.1; log(1 - sigma(x)) = log sigma(-x)
    exact = [_softplus(towards[0]), _softplus(towards[1]) / 2]  # alpha is 0.5
    assert loss.item() == pytest.approx(float(exact[0] + exact[1]), rel=1e-4, abs=1e-37)
    slopes = [-_sigmoid(towards[0]) / 10, _sigmoid(towards[1]) / 20]
    assert scores.real.grad.item() == pytest.approx(float(slopes[0]), rel=1e-4, abs=1e-37)
    assert scores.fake.grad.item() == pytest.approx(float(slopes[1]), rel=1e-4, abs=1e-37)
    assert all(value.isfinite() for value in metrics.values())


def _pairs(scores):
    return (scores.real, scores.reference_real), (scores.fake, scores.reference_fake)


def _softplus(value):
    return value + mpmath.log1p(mpmath.exp(-value)) if value > 0 else mpmath.log1p(mpmath.exp(value))


def _sigmoid(value):
    return 1 / (1 + mpmath.exp(-value))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP, LOGP), min_size=1, max_size=64))
@example([(LOWEST,) * 5] * 64)
@example([(LOWEST, 0.0, 0.0, LOWEST, LOWEST)] * 64)
@any_speed
def test_no_objective_overflows(name, columns):
    *logp, divergence = zip(*columns, strict=True)
    scores = scores_of(*logp)
    scores.entropy, scores.divergence = (torch.tensor(each).abs().requires_grad_() for each in (logp[0], divergence))
    loss, metrics = build_objective(name)(scores, tokens_of(len(columns)))
    loss.backward()
    leaves = (scores.real, scores.fake, scores.entropy, scores.divergence)
    assert all(value.isfinite() for value in (loss, *metrics.values()))
    assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)


def extreme_logits(size):
    """[M, V]: all alike, one far above or below the others, a ladder, and two that share the top."""
    flat, hot = torch.full((VOCAB,), size), torch.full((VOCAB,), -size)
    hot[2] = size
    two, ladder = hot.clone(), torch.linspace(-1, 1, VOCAB) * size
    two[5] = size
    return torch.stack([flat, -flat, hot, -hot, ladder, two, 0 * flat])


def exact_scores(logits, targets, temperature, theirs):
    """float64: log-probabilities, entropy, divergence."""
    ours = logits.log_softmax(dim=-1).clamp_min(LOWEST_LOGP)
    tempered = (logits / temperature).log_softmax(dim=-1).clamp_min(LOWEST_LOGP)
    theirs = theirs.log_softmax(dim=-1).clamp_min(LOWEST_LOGP)
    return (
        ours.gather(1, targets),
        -(tempered.exp() * tempered).sum(dim=-1),
        (theirs.exp() * (theirs - ours)).sum(dim=-1),
    )


@pytest.mark.parametrize("size", [1e4, 1e29])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_the_head_scores_extreme_logits_exactly(size, dtype, temperature, chunk_tokens):
    hidden = extreme_logits(size).to(dtype).requires_grad_()  # the head is the identity: these are its logits
    theirs, targets = hidden.detach().flip(0), torch.tensor([[0, 2], [1, MASK]]).repeat(4, 1)[:7]
    scores = score_tokens(
        hidden,
        torch.eye(VOCAB, dtype=dtype),
        targets,
        mask_token_id=MASK,
        entropy=True,
        entropy_temperature=temperature,
        teacher=Teacher(theirs, torch.eye(VOCAB, dtype=dtype)),
        chunk_tokens=chunk_tokens,
    )
    logits = hidden.detach().double().requires_grad_()
    expected = exact_scores(logits, targets, temperature, theirs.double())
    got = (scores.logp, scores.entropy, scores.divergence)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left.double(), right, rtol=1e-5, atol=1e-6)
    for each in (got, expected):
        sum(part.sum() for part in each).backward()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(hidden.grad.double(), logits.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [1e4, 3e38])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_extreme_logits_is_finite(name, size):
    objective, eye = build_objective(name), torch.eye(VOCAB)
    hidden, tokens = extreme_logits(size).requires_grad_(), tokens_of(7, targets=torch.arange(7))
    frozen = hidden.detach().roll(1, dims=0)
    judged = score_tokens(frozen, eye, tokens.targets[:, None], mask_token_id=MASK, append_own=True)
    targets = torch.stack([tokens.targets, judged.own], dim=1)
    asked = {"entropy": True, "entropy_temperature": objective.needs_entropy_at or 1.0}
    scored = score_tokens(hidden, eye, targets, mask_token_id=MASK, teacher=Teacher(frozen, eye), **asked)
    scores = Scores(
        scored.logp[:, 0], scored.argmax, scored.logp[:, 1], *judged.logp.T, scored.entropy, scored.divergence
    )
    loss, metrics = objective(scores, tokens)
    loss.backward()
    assert all(value.isfinite() for value in (loss, *metrics.values()))
    assert hidden.grad.isfinite().all()


# Decoding

NAN, INF = math.nan, math.inf
GOOD = {
    "all high": [1e4] * VOCAB,
    "all low": [-1e4] * VOCAB,
    "one": [1e4] + [-1e4] * (VOCAB - 1),
    "the mask": [-1e4] * (VOCAB - 1) + [1e4],
    "half impossible": [-INF] * 4 + [0.0, 1.0, 2.0, 3.0],
    "float32's ends": [3e38, -3e38] + [0.0] * (VOCAB - 2),
    "a mask that is no number": [0.0] * (VOCAB - 1) + [NAN],
}
BAD = {
    "all impossible": [-INF] * VOCAB,
    "all but the mask impossible": [-INF] * (VOCAB - 1) + [0.0],
    "infinite": [INF] + [0.0] * (VOCAB - 1),
    "no number": [NAN] + [0.0] * (VOCAB - 1),
}


def params_of(count, temperature, top_k, top_p):
    keys = draw_keys(torch.zeros(count, dtype=torch.int64), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    columns = (torch.full((count,), value) for value in (temperature, top_k, top_p))
    return SamplingParams(*columns, keys)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (0, 1e-9), (1, 1e-9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_are_drawn_from_or_say_so_and_spoil_no_other(temperature, top_k, top_p, dtype):
    logits = torch.tensor([*GOOD.values(), *BAD.values()]).to(dtype)
    params = params_of(len(logits), temperature, top_k, top_p)
    drawn = draw_candidates(logits, params, MASK)
    finite = drawn.confidence.isfinite() & drawn.entropy.isfinite()
    assert finite.tolist() == [True] * len(GOOD) + [False] * len(BAD)
    good = slice(0, len(GOOD))
    alone = draw_candidates(logits[good], params.slice(0, len(GOOD)), MASK)
    assert torch.equal(alone.token_ids, drawn.token_ids[good])
    assert torch.equal(alone.confidence, drawn.confidence[good])
    assert (drawn.token_ids[good] != MASK).all()
    assert ((drawn.confidence[good] > 0) & (drawn.confidence[good] <= 1)).all()
    assert (drawn.entropy[good] >= 0).all()
    assert (drawn.entropy[good] <= math.log(VOCAB)).all()
    if temperature > 0 and (top_k == 1 or top_p < 1):
        assert drawn.confidence[good].tolist() == [1.0] * len(GOOD)  # one is left to draw
        assert torch.equal(drawn.token_ids[good], logits[good, :MASK].float().argmax(dim=1))

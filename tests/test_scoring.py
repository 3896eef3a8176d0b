"""Scores in chunks against plain softmax arithmetic, values and gradients."""

import pytest
import torch
from tiny import MASK, VOCAB, noisy_examples, tiny_model
from torch.nn.functional import log_softmax

from t3d.corruption import pack
from t3d.models.attention import as_attention_mask, two_copy_mask
from t3d.models.scoring import Teacher, score_tokens
from t3d.training.scorer import Scorer

EXACT = {"atol": 1e-11, "rtol": 1e-11}


def problem(tokens=7, targets=2, seed=0, dtype=torch.float64):
    """hidden [M, H], head [V, H], targets [M, K]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 5, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(VOCAB, 5, generator=generator, dtype=dtype).requires_grad_()
    return hidden, head, torch.randint(VOCAB, (tokens, targets), generator=generator)


def gradients(scores, *leaves):
    """Of a sum in which every score has a weight of its own."""
    total = 0.0
    for part in (scores.logp, scores.entropy):
        if part is not None:
            total = total + (part * torch.arange(1, part.numel() + 1, dtype=part.dtype).view(part.shape)).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("entropy, temperature", [(False, 1.0), (True, 1.0), (True, 0.5)])
@pytest.mark.parametrize("append_own", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 8])
def test_chunks_change_nothing(chunk_tokens, append_own, entropy, temperature):
    hidden, head, targets = problem()
    options = {"mask_token_id": MASK, "append_own": append_own}
    options |= {"entropy": entropy, "entropy_temperature": temperature}
    whole = score_tokens(hidden, head, targets, **options)
    parts = score_tokens(hidden, head, targets, chunk_tokens=chunk_tokens, **options)
    with torch.no_grad():
        silent = score_tokens(hidden, head, targets, chunk_tokens=chunk_tokens, **options)
    for other in (parts, silent):
        torch.testing.assert_close(other.logp, whole.logp, **EXACT)
        assert torch.equal(other.argmax, whole.argmax)
        assert (other.entropy is None) == (not entropy)
        if entropy:
            torch.testing.assert_close(other.entropy, whole.entropy, **EXACT)
    for left, right in zip(gradients(parts, hidden, head), gradients(whole, hidden, head), strict=True):
        torch.testing.assert_close(left, right, **EXACT)
    assert not silent.logp.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_values_and_gradients_are_those_of_log_softmax(temperature):
    """The temperature is the entropy's alone."""
    hidden, head, targets = problem()
    options = {"mask_token_id": MASK, "entropy": True, "entropy_temperature": temperature, "chunk_tokens": 3}
    scores = score_tokens(hidden, head, targets, **options)
    logp = log_softmax(hidden @ head.T, dim=-1)  # over the whole vocabulary, the mask token included
    best = logp.argmax(dim=-1)
    tempered = log_softmax(hidden @ head.T / temperature, dim=-1)
    plain = type(scores)(logp.gather(1, targets), best, best, -(tempered.exp() * tempered).sum(dim=-1))
    torch.testing.assert_close(scores.logp, plain.logp, **EXACT)
    torch.testing.assert_close(scores.entropy, plain.entropy, **EXACT)
    for left, right in zip(gradients(scores, hidden, head), gradients(plain, hidden, head), strict=True):
        torch.testing.assert_close(left, right, **EXACT)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradcheck(temperature):
    hidden, head, targets = problem(tokens=3)
    teacher = Teacher(torch.randn(3, 2, dtype=torch.float64), torch.randn(VOCAB, 2, dtype=torch.float64))

    def scored(hidden, head):
        options = {"mask_token_id": MASK, "entropy": True, "entropy_temperature": temperature, "chunk_tokens": 2}
        scores = score_tokens(hidden, head, targets, teacher=teacher, **options)
        return scores.logp, scores.entropy, scores.divergence

    assert torch.autograd.gradcheck(scored, (hidden, head))


def test_divergence_is_that_of_the_two_softmaxes():
    hidden, head, targets = problem()
    torch.manual_seed(1)
    teacher = Teacher(torch.randn(len(hidden), 3, dtype=hidden.dtype), torch.randn(VOCAB, 3, dtype=hidden.dtype))
    scores = score_tokens(hidden, head, targets, mask_token_id=MASK, teacher=teacher, chunk_tokens=3)
    log_p = log_softmax(hidden @ head.T, dim=-1)
    log_q = log_softmax(teacher.hidden @ teacher.head_weight.T, dim=-1)
    expected = torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=-1)
    torch.testing.assert_close(scores.divergence, expected, **EXACT)
    weights = torch.randn(len(hidden), dtype=hidden.dtype)
    left = torch.autograd.grad((scores.divergence * weights).sum() + scores.logp.sum(), (hidden, head))
    right = torch.autograd.grad((expected * weights).sum() + log_p.gather(1, targets).sum(), (hidden, head))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    itself = score_tokens(hidden, head, targets, mask_token_id=MASK, teacher=Teacher(hidden, head))
    torch.testing.assert_close(itself.divergence, torch.zeros_like(expected), **EXACT)


def test_by_hand():
    """Two tokens of probability 3/4 and 1/4, the third is the mask token."""
    hidden, head = torch.eye(2), torch.tensor([[3.0, 5.0], [1.0, 3.0], [4.0, 9.0]]).log()
    scores = score_tokens(hidden, head, torch.tensor([[0], [1]]), mask_token_id=2, entropy=True)
    assert scores.logp.exp()[:, 0].tolist() == pytest.approx([3 / 8, 3 / 17])
    assert scores.argmax.tolist() == [0, 0]  # the mask token is likelier both times
    expected = torch.tensor([3 / 8, 1 / 8, 4 / 8])
    assert scores.entropy[0].item() == pytest.approx(-(expected * expected.log()).sum().item())
    options = {"mask_token_id": 2, "entropy": True, "entropy_temperature": 0.5}
    scores = score_tokens(hidden, head, torch.tensor([[0], [1]]), **options)
    expected = torch.tensor([9 / 26, 1 / 26, 16 / 26])  # probabilities squared: 9 + 1 + 16 = 26
    assert scores.entropy[0].item() == pytest.approx(-(expected * expected.log()).sum().item())
    assert scores.logp.exp()[:, 0].tolist() == pytest.approx([3 / 8, 3 / 17])  # it is the entropy's alone


def test_entropy_of_uniform_logits_is_the_log_of_the_vocabulary():
    scores = score_tokens(
        torch.zeros(2, 5), torch.ones(VOCAB, 5), torch.zeros(2, 1, dtype=torch.int64), mask_token_id=MASK, entropy=True
    )
    assert scores.entropy.tolist() == pytest.approx([torch.tensor(float(VOCAB)).log().item()] * 2)


def test_argmax_is_never_the_mask_token_and_may_be_appended():
    hidden, head, targets = problem(tokens=50)
    with torch.no_grad():
        head[MASK] = 10 * hidden[:10].sum(dim=0)
        wins = (hidden @ head.T).argmax(dim=-1) == MASK
        assert 0 < wins.sum() < 50
    scores = score_tokens(hidden, head, targets, mask_token_id=MASK, append_own=True, chunk_tokens=8)
    logits = (hidden @ head.T).detach()
    others = torch.cat([logits[:, :MASK], torch.full((50, 1), -torch.inf), logits[:, MASK + 1 :]], dim=1)
    assert torch.equal(scores.argmax, others.argmax(dim=1))
    assert scores.logp.shape == (50, 3)
    logp = log_softmax(logits, dim=-1)
    torch.testing.assert_close(scores.logp[:, 2], logp.gather(1, scores.argmax[:, None])[:, 0], **EXACT)
    torch.testing.assert_close(scores.logp[:, :2], logp.gather(1, targets), **EXACT)


def test_the_mask_token_may_be_a_target():
    """Only the argmax leaves it out: its log-probability stays a finite number."""
    hidden, head, _ = problem(tokens=4)
    scores = score_tokens(hidden, head, torch.full((4, 1), MASK), mask_token_id=MASK)
    torch.testing.assert_close(scores.logp[:, 0], log_softmax(hidden @ head.T, dim=-1)[:, MASK], **EXACT)


@pytest.mark.parametrize("append_own", [False, True])
def test_no_positions(append_own):
    hidden, head, targets = problem(tokens=0)
    scores = score_tokens(hidden, head, targets, mask_token_id=MASK, entropy=True, append_own=append_own)
    assert scores.logp.shape == (0, 3 if append_own else 2)
    assert scores.argmax.shape == scores.entropy.shape == (0,)
    (scores.logp.sum() + scores.entropy.sum()).backward()
    assert hidden.grad.shape == (0, 5)
    assert head.grad.abs().max() == 0


def test_half_precision_is_scored_in_float32():
    hidden, head, targets = problem(dtype=torch.bfloat16)
    scores = score_tokens(hidden, head, targets, mask_token_id=MASK, entropy=True)
    assert scores.logp.dtype == scores.entropy.dtype == torch.float32
    plain = log_softmax((hidden @ head.T).float(), dim=-1).gather(1, targets)
    torch.testing.assert_close(scores.logp, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_scorer_is_the_models_own_logits(tied):
    model = tiny_model(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    batch = pack(noisy_examples(), row_tokens=70, block_size=4, num_examples_in_step=7)
    mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, 4)
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=as_attention_mask(mask, torch.float64),
        use_cache=False,
    ).logits
    plain = log_softmax(logits.flatten(0, 1)[batch.loss_index], dim=-1).gather(1, batch.tokens.targets[:, None])
    scored = Scorer(model)(batch, batch.tokens.targets[:, None]).logp
    torch.testing.assert_close(scored, plain, **EXACT)
    weights = list(model.parameters())
    left, right = torch.autograd.grad(scored.sum(), weights), torch.autograd.grad(plain.sum(), weights)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_own_token_is_drawn_at_the_temperature():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0])  # the last is the mask token, which is never drawn
    number, temperature = 20_000, 0.7
    hidden = torch.eye(1).expand(number, 1)
    keys = torch.randint(0, 2**62, (number,))
    options = {"mask_token_id": 4, "append_own": True, "temperature": temperature, "draw_keys": keys}
    scores = score_tokens(hidden, logits[:, None], torch.zeros(number, 1, dtype=torch.int64), **options)
    expected = (logits[:4] / temperature).softmax(0) * number
    counts = torch.bincount(scores.own, minlength=5).float()
    assert counts[4] == 0
    assert ((counts[:4] - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    torch.testing.assert_close(scores.logp[:, 1], logits.log_softmax(0)[scores.own])  # scored without the temperature
    assert (scores.argmax == 0).all()


def test_own_draws_depend_on_their_keys_alone():
    torch.manual_seed(0)
    hidden, head = torch.randn(12, 6), torch.randn(9, 6)
    targets, keys = torch.zeros(12, 1, dtype=torch.int64), torch.randint(0, 2**62, (12,))
    options = {"mask_token_id": 8, "append_own": True, "temperature": 1.0}
    together = score_tokens(hidden, head, targets, draw_keys=keys, **options).own
    order = torch.randperm(12)
    apart = score_tokens(hidden[order], head, targets, draw_keys=keys[order], chunk_tokens=5, **options).own
    assert torch.equal(apart, together[order])
    assert not torch.equal(together, score_tokens(hidden, head, targets, draw_keys=keys + 1, **options).own)

"""However a step's examples are cut into rows, batches and processes: the same loss, gradients and metrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import noisy_example, noisy_examples, random_row, tiny_model

from t3d.corruption import NoisyExample, pack, pack_in_budget
from t3d.corruption.packing import PADDING_DOCUMENT, assign_rows, deal, spread_evenly
from t3d.models import scoring
from t3d.models.attention import CLEAN, NOISY, TILE, two_copy_mask
from t3d.objectives import OBJECTIVES, build_objective
from t3d.training.scorer import Scorer, consult, score_batch

any_speed = settings(deadline=None)
EXACT = {"atol": 1e-10, "rtol": 1e-10}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture(scope="module")
def student():
    return Scorer(tiny_model(seed=1))


@pytest.fixture(scope="module")
def reference():
    return Scorer(tiny_model(seed=2)).requires_grad_(False)


def scores_of(batch, objective, student, reference):
    """What the trainer would have an objective know of a batch."""
    needs_frozen = objective.needs_reference or objective.needs_teacher
    verdict = consult(reference, batch, objective) if needs_frozen else None
    return score_batch(student, batch, verdict, objective.needs_entropy_at)


def step_of(batches, name, student, reference):
    """Loss, gradient and metrics of one optimizer step, as the trainer adds them up over its batches."""
    objective = build_objective(name)
    student.zero_grad()
    totals = {}
    for batch in batches:
        scores = scores_of(batch, objective, student, reference)
        loss, metrics = objective(scores, batch.tokens)
        loss.backward()
        for key, value in {"loss": loss.detach(), **metrics}.items():
            totals[key] = totals.get(key, 0.0) + value
    gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    return {**totals, "gradient": gradient}


def assert_same_step(left, right):
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(left[key], right[key], **EXACT, msg=lambda text, key=key: f"{key}: {text}")


def one_at_a_time(examples, num_examples):
    return [pack([example], row_tokens=None, block_size=4, num_examples_in_step=num_examples) for example in examples]


@every_objective
def test_packed_is_one_at_a_time(name, student, reference):
    examples = noisy_examples(OBJECTIVES[name].hider)
    together = pack(examples, row_tokens=60, block_size=4, num_examples_in_step=len(examples))
    assert 1 < together.input_ids.shape[0] < len(examples)
    alone = step_of(one_at_a_time(examples, len(examples)), name, student, reference)
    assert alone["gradient"].abs().max() > 1e-3
    assert_same_step(step_of([together], name, student, reference), alone)


@every_objective
def test_the_step_is_the_mean_over_its_examples(name, student, reference):
    examples = noisy_examples(OBJECTIVES[name].hider)
    batch = pack(examples, row_tokens=None, block_size=4, num_examples_in_step=len(examples))
    whole = step_of([batch], name, student, reference)
    each = [step_of(one_at_a_time([example], 1), name, student, reference) for example in examples]
    for key, value in whole.items():
        mean = torch.stack([one[key] for one in each]).mean(dim=0)
        torch.testing.assert_close(value, mean, **EXACT)


@every_objective
@pytest.mark.parametrize("tokens_per_batch", [1, 50, 10_000])
@pytest.mark.parametrize("row_tokens", [None, 1, 45, 10_000])
def test_budgets_change_nothing(name, tokens_per_batch, row_tokens, student, reference):
    examples = noisy_examples(OBJECTIVES[name].hider)
    batches = pack_in_budget(
        examples,
        tokens_per_batch=tokens_per_batch,
        row_tokens=row_tokens,
        block_size=4,
        num_examples_in_step=len(examples),
    )
    assert tokens_per_batch != 1 or len(batches) == len(examples)
    plain = step_of(one_at_a_time(examples, len(examples)), name, student, reference)
    assert_same_step(step_of(batches, name, student, reference), plain)


@every_objective
@pytest.mark.parametrize("num_processes", [2, 3])
def test_shares_of_processes_add_up(name, num_processes, student, reference):
    examples = noisy_examples(OBJECTIVES[name].hider)
    shares = [
        pack_in_budget(
            examples[rank::num_processes],
            tokens_per_batch=80,
            row_tokens=None,
            block_size=4,
            num_examples_in_step=len(examples),
        )
        for rank in range(num_processes)
    ]
    parts = [step_of(share, name, student, reference) for share in shares]
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    assert_same_step(total, step_of(one_at_a_time(examples, len(examples)), name, student, reference))


@every_objective
def test_an_example_without_a_hidden_token_adds_nothing(name, student, reference):
    full = noisy_example(random_row("full", 5, 9), OBJECTIVES[name].hider)
    empty = NoisyExample(
        "empty",
        full.clean_ids,
        full.noisy_start,
        full.noisy_ids,
        *(np.empty(0, np.int64),) * 3,
        np.empty(0),
        np.empty(0, np.int64),
    )
    alone = step_of(one_at_a_time([empty], 2), name, student, reference)
    assert alone["gradient"].abs().max() == 0
    assert torch.isfinite(alone["loss"])
    both = pack([full, empty], row_tokens=None, block_size=4, num_examples_in_step=2)
    gradient = step_of([both], name, student, reference)["gradient"]
    torch.testing.assert_close(
        gradient, step_of(one_at_a_time([full], 2), name, student, reference)["gradient"], **EXACT
    )


@every_objective
def test_an_objective_keeps_its_word(name, student, reference):
    """What every entry of the registry owes: a scalar part of a mean, detached metrics, a hider that exists."""
    objective = build_objective(name)
    batch = pack(noisy_examples(objective.hider), row_tokens=None, block_size=4, num_examples_in_step=7)
    assert not (objective.needs_reference and objective.needs_teacher)  # a run holds one frozen model
    scores = scores_of(batch, objective, student, reference)
    assert (scores.reference_real is not None) == objective.needs_reference
    assert (scores.divergence is not None) == objective.needs_teacher
    assert (scores.entropy is not None) == (objective.needs_entropy_at is not None)
    loss, metrics = objective(scores, batch.tokens)
    assert loss.shape == ()
    assert loss.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert objective(scores, batch.tokens)[0].item() == loss.item()  # pure: nothing drawn, nothing kept
    better = objective.model_copy()
    scores.real = scores.real + 1
    assert better(scores, batch.tokens)[0] < loss  # likelier teacher tokens, lower loss


@every_objective
def test_logits_are_never_of_the_whole_batch(name, student, reference, monkeypatch):
    """Student, reference and teacher: five tokens at a time, and the same step."""
    examples = noisy_examples(OBJECTIVES[name].hider)
    batch = pack(examples, row_tokens=None, block_size=4, num_examples_in_step=len(examples))
    whole = step_of([batch], name, student, reference)
    monkeypatch.setattr(scoring, "SMALLEST_CHUNK", 5)
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 5)
    sizes = []
    for part in ("_summary", "_logit_gradient"):
        original = getattr(scoring, part)

        def watched(logits, teacher_logits, *others, original=original):
            sizes.extend(len(each) for each in (logits, teacher_logits) if each is not None)
            return original(logits, teacher_logits, *others)

        monkeypatch.setattr(scoring, part, watched)
    assert_same_step(step_of([batch], name, student, reference), whole)
    assert max(sizes) == 5
    assert sum(sizes) >= 2 * len(batch.tokens.targets)


# Where tokens go


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths, st.integers(1, 60))
@any_speed
def test_every_example_has_one_row_and_rows_do_not_overflow(lengths, row_tokens):
    rows = assign_rows(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= row_tokens


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(1, 90)),
    st.integers(1, 200),
    st.integers(1, 5),
)
@any_speed
def test_every_token_is_placed_exactly_once(lengths, row_tokens, tokens_per_batch, block_size):
    examples = {
        f"row {index}": noisy_example(random_row(f"row {index}", *pair), block_size=block_size)
        for index, pair in enumerate(lengths)
    }
    batches = pack_in_budget(
        list(examples.values()),
        tokens_per_batch=tokens_per_batch,
        row_tokens=row_tokens,
        block_size=block_size,
        num_examples_in_step=len(examples),
    )
    assert sorted(row_id for batch in batches for row_id in batch.row_ids) == sorted(examples)
    for batch in batches:
        members = [examples[row_id] for row_id in batch.row_ids]
        assert len(members) == batch.tokens.num_examples
        assert len(members) == 1 or sum(one.num_tokens for one in members) <= tokens_per_batch
        assert (batch.document_ids != PADDING_DOCUMENT).sum() == sum(one.num_tokens for one in members)
        flat_inputs, flat_documents = batch.input_ids.flatten(), batch.document_ids.flatten()
        for index, example in enumerate(members):
            inside = batch.document_ids == index
            assert inside.any(dim=1).sum() == 1
            copies, positions, ids = (part[inside] for part in (batch.copy_ids, batch.position_ids, batch.input_ids))
            assert ids[copies == CLEAN].tolist() == example.clean_ids.tolist()
            assert ids[copies == NOISY].tolist() == example.noisy_ids.tolist()
            assert positions[copies == CLEAN].tolist() == list(range(len(example.clean_ids)))
            start = example.noisy_start
            assert positions[copies == NOISY].tolist() == list(range(start, start + len(example.noisy_ids)))
            mine = batch.tokens.example == index
            assert (flat_documents[batch.loss_index[mine]] == index).all()
            assert flat_inputs[batch.loss_index[mine]].tolist() == example.noisy_ids[example.loss_offsets].tolist()
            assert batch.tokens.targets[mine].tolist() == example.targets.tolist()
            absolute = batch.position_ids.flatten()[batch.loss_index[mine]]
            assert example.clean_ids[absolute.numpy()].tolist() == example.targets.tolist()


@given(lengths, st.randoms())
@any_speed
def test_batches_do_not_depend_on_the_order_of_examples(lengths, random):
    examples = [noisy_example(random_row(str(index), 1, length)) for index, length in enumerate(lengths)]
    shuffled = random.sample(examples, len(examples))
    budget = {"tokens_per_batch": 120, "row_tokens": 60, "block_size": 4, "num_examples_in_step": 1}
    left, right = pack_in_budget(examples, **budget), pack_in_budget(shuffled, **budget)
    assert [batch.row_ids for batch in left] == [batch.row_ids for batch in right]
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(left, right, strict=True))


def test_counts_of_a_batch_are_those_of_its_mask():
    examples = noisy_examples()
    batch = pack(examples, row_tokens=60, block_size=4, num_examples_in_step=len(examples))
    mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, 4)
    real = batch.document_ids != PADDING_DOCUMENT
    assert batch.num_tokens == real.sum()
    assert batch.num_pairs == mask[real].sum()


@any_speed
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_even_batches_hold_everything_once_within_the_budget(lengths, budget):
    lengths = sorted(lengths, reverse=True)
    batches = spread_evenly(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in batch) for batch in batches]
    assert all(0 < load <= max(budget, lengths[0]) for load in loads)
    if lengths:
        assert max(loads) - min(loads) <= lengths[0]  # the emptiest got each, so none is ahead by more than one


@any_speed
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 9))
def test_hands_hold_everything_once_and_nearly_as_much(lengths, hands):
    dealt = deal(sorted(lengths, reverse=True), hands)
    assert sorted(index for hand in dealt for index in hand) == list(range(len(lengths)))
    loads = [sum(sorted(lengths, reverse=True)[index] for index in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(lengths)
    assert sum(load > 0 for load in loads) == min(hands, len(lengths))


@every_objective
@pytest.mark.parametrize("tiled", [False, True])
def test_batches_without_examples_change_nothing(name, tiled, student, reference):
    """A process that would have fewer batches than another runs them."""
    examples = noisy_examples(OBJECTIVES[name].hider)
    options = {"row_tokens": None, "block_size": 4, "num_examples_in_step": len(examples), "tiled": tiled}
    batches = pack_in_budget(examples, tokens_per_batch=60, at_least=50, **options)
    assert len(batches) == 50
    empty = batches[-1]
    assert (empty.row_ids, empty.num_tokens, empty.num_pairs, empty.tokens.num_examples) == ([], 0, 0, 0)
    with_them, without = (step_of(part, name, student, reference) for part in (batches, batches[:-10]))
    assert_same_step(with_them, without)
    alone = step_of([empty], name, student, reference)  # every weight has a gradient, or this fails
    assert not any(value.any() for value in alone.values())


@every_objective
@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_rows_of_whole_tiles_change_nothing(name, tokens_per_batch, student, reference):
    examples = noisy_examples(OBJECTIVES[name].hider)
    options = {"row_tokens": None, "block_size": 4, "num_examples_in_step": len(examples)}
    batches = pack_in_budget(examples, tokens_per_batch=tokens_per_batch, tiled=True, **options)
    assert all(batch.input_ids.shape == (1, TILE) for batch in batches)
    plain = step_of(one_at_a_time(examples, len(examples)), name, student, reference)
    assert_same_step(step_of(batches, name, student, reference), plain)

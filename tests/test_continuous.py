"""The continuous backend: the plain engine's tokens, whatever comes, goes, waits or is swapped out."""

import random

import numpy as np
import pytest
import torch
from test_engine import EOS, MASK, VOCAB, assert_same, mixed_requests, prompt, tiny_model

from t3d.engine import Engine
from t3d.engine.continuous.core import Core
from t3d.engine.continuous.memory import Budget
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.plain import PlainEngine
from t3d.engine.request import check_request
from t3d.errors import RequestError
from t3d.models import load_model, save_model
from t3d.types import Decoding

torch.set_num_threads(1)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


HEAD_DIMS = {"torch kernels": 8, "triton kernels": 16} if DEVICE == "cuda" else {"torch kernels": 8}
"""Triton's kernels take heads of 16 and more; on the CPU everything is plain torch."""


@pytest.fixture(scope="module", params=HEAD_DIMS.values(), ids=HEAD_DIMS.keys())
def model(request):
    return tiny_model(max_positions=512, head_dim=request.param).to(DEVICE)


def checked(model, prompts, decodings, seeds):
    requests = zip(prompts, decodings, seeds, strict=True)
    return [
        check_request(index, tokens, decoding, seed, [EOS], model.config)
        for index, (tokens, decoding, seed) in enumerate(requests)
    ]


def make_core(model, requests, num_slots=8, num_pages=1000, prefill_tokens=2**13, choose_step=None):
    longest = max(request.num_positions for request in requests)
    budget = Budget(num_slots, num_pages, longest, prefill_tokens)
    return Core(model, requests[0].block_size, budget, num_stop_tokens=8, choose_step=choose_step)


def drained(core, sequences):
    """Step until nothing is left; the results in the order of the sequences."""
    while core.has_work:
        core.step()
    return [sequence.generation() for sequence in sequences]


def long_requests(count, seed=0):
    """Requests of one to five pages, that differ in everything else too."""
    rng = random.Random(seed)
    _, decodings, seeds = mixed_requests(count)
    prompts = [prompt(rng.choice([1, 3, 4, 30, 63, 64, 65, 130]), seed=index) for index in range(count)]
    longest = [rng.choice([5, 40, 90, 180]) for _ in range(count)]
    decodings = [
        Decoding(**{**{name: getattr(one, name) for name in one.__slots__}, "max_new_tokens": length})
        for one, length in zip(decodings, longest, strict=True)
    ]
    return prompts, decodings, seeds


def test_the_same_as_plain_for_all_kinds_of_requests(model):
    requests = mixed_requests(60)
    continuous = Engine(model, backend="continuous").generate(*requests)
    plain = Engine(model, backend="plain").generate(*requests)
    assert_same(continuous, plain)
    assert [one.num_forwards for one in continuous] == [one.num_forwards for one in plain]


@pytest.mark.parametrize("seed", range(5))
def test_500_requests_under_random_arrival_preemption_and_batches_equal_plain(model, seed):
    """A hundred a seed, greedy and drawn; memory for a few; arrivals, priorities and who steps are random."""
    prompts, decodings, seeds = long_requests(100, seed)
    requests = checked(model, prompts, decodings, seeds)
    rng = np.random.default_rng(seed)

    def choose_step(slots):
        return slots[rng.random(len(slots)) < 0.8]

    core = make_core(model, requests, num_slots=7, num_pages=14, prefill_tokens=48, choose_step=choose_step)
    sequences = [Sequence(request, arrival, priority=int(rng.integers(3))) for arrival, request in enumerate(requests)]
    waiting = list(sequences)
    while waiting or core.has_work:
        for _ in range(rng.integers(3)):
            if waiting:
                core.submit(waiting.pop())
        core.step()

    plain = list(PlainEngine(model).run(requests))
    expected = {request.index: generation for request, generation in plain}
    results = [sequence.generation() for sequence in sequences]
    assert_same(results, [expected[index] for index in range(len(requests))])
    assert [one.num_forwards for one in results] == [expected[i].num_forwards for i in range(len(requests))]
    assert core.counters.num_preemptions > 5
    assert core.share_of_pages_in_use == 0
    assert core.num_running == core.num_waiting == 0


def test_a_swapped_out_request_goes_on_as_if_nothing_had_happened(model):
    """Two that fit alone but not together: one of them is swapped out, and neither is shortened."""
    decoding = Decoding(max_new_tokens=200, steps_per_block=2)
    requests = checked(model, [prompt(64, seed=1), prompt(64, seed=2)], [decoding] * 2, [1, 2])
    requests = [one.__class__(**{**one.__dict__, "stop_token_ids": frozenset()}) for one in requests]
    alone = [drained(core, [sequence])[0] for core, sequence in (started(model, [one]) for one in requests)]
    core = make_core(model, requests, num_pages=1 + 7)
    sequences = [Sequence(one, index) for index, one in enumerate(requests)]
    for sequence in sequences:
        core.submit(sequence)
    together = drained(core, sequences)
    assert core.counters.num_preemptions > 0
    assert [len(one.token_ids) for one in together] == [200, 200]
    assert_same(together, alone)
    if DEVICE == "cpu":  # a GPU's kernels round differently in batches of other sizes
        assert together == alone


def started(model, requests, **options):
    core = make_core(model, requests, **options)
    sequences = [Sequence(one, index) for index, one in enumerate(requests)]
    for sequence in sequences:
        core.submit(sequence)
    return core, sequences[0] if len(sequences) == 1 else sequences


def test_samples_of_one_prompt_share_its_pages(model):
    decoding = Decoding(max_new_tokens=10, temperature=1.0)
    tokens = prompt(200, seed=5)
    requests = checked(model, [tokens] * 6, [decoding] * 6, range(6))
    core, sequences = started(model, requests)
    shared = drained(core, sequences)
    assert core.counters.num_shared_tokens == 5 * 192
    assert core.counters.num_prefill_tokens == 200 + 5 * 8
    assert_same(shared, Engine(model, backend="plain").generate([tokens] * 6, [decoding] * 6, list(range(6))))


def test_a_prompt_that_only_begins_alike_shares_what_is_alike(model):
    start = prompt(64, seed=1)
    prompts = [start + prompt(100, seed=2), start + prompt(100, seed=3), prompt(64, seed=4) + prompt(100, seed=2)]
    requests = checked(model, prompts, [Decoding(max_new_tokens=6)] * 3, range(3))
    core, sequences = started(model, requests)
    results = drained(core, sequences)
    assert core.counters.num_shared_tokens == 64
    assert_same(results, Engine(model, backend="plain").generate(prompts, [Decoding(max_new_tokens=6)] * 3))


@pytest.mark.parametrize("prefill_tokens", [1, 4, 24, 64, 1000])
def test_a_prompt_in_chunks_is_the_prompt_at_once(model, prefill_tokens):
    prompts = [prompt(300, seed=1), prompt(7, seed=2), prompt(129, seed=3)]
    requests = checked(model, prompts, [Decoding(max_new_tokens=9)] * 3, [0] * 3)
    core, sequences = started(model, requests, prefill_tokens=prefill_tokens)
    assert_same(drained(core, sequences), Engine(model, backend="plain").generate(prompts, Decoding(max_new_tokens=9)))


def test_higher_priorities_go_first_and_may_push_others_out(model):
    decoding = Decoding(max_new_tokens=40)
    requests = checked(model, [prompt(5, seed=index) for index in range(4)], [decoding] * 4, range(4))
    core = make_core(model, requests, num_slots=1)
    finished = []
    low, middle, high = (Sequence(requests[i], i, priority=i) for i in range(3))
    for sequence in (low, middle):
        core.submit(sequence)
    core.step()
    core.step()
    core.submit(high)
    while core.has_work:
        finished += core.step()
    assert [sequence.priority for sequence in finished] == [2, 1, 0]
    assert core.counters.num_preemptions == 1


def test_cancelled_requests_leave_and_free_what_they_held(model):
    decoding = Decoding(max_new_tokens=100)
    prompts = [prompt(70, seed=index) for index in range(5)]
    requests = checked(model, prompts, [decoding] * 5, range(5))
    core, sequences = started(model, requests, num_slots=3, prefill_tokens=64)
    core.step()
    for place in (0, 1, 4):  # decoding or in prefill, in prefill, waiting
        core.cancel(sequences[place])
    finished = []
    while core.has_work:
        finished += core.step()
    assert {sequence.request.index for sequence in finished} == {2, 3}
    assert core.share_of_pages_in_use == 0
    assert_same(
        [sequences[2].generation(), sequences[3].generation()],
        Engine(model, backend="plain").generate(prompts[2:4], [decoding] * 2, [2, 3]),
    )


def test_blocks_arrive_in_order_and_make_up_the_response(model):
    requests = checked(model, [prompt(6, seed=3)], [Decoding(max_new_tokens=21)], [0])
    core = make_core(model, requests)
    seen = []
    sequence = Sequence(requests[0], 0, on_block=lambda one: seen.append(len(one.rows)))
    core.submit(sequence)
    result = drained(core, [sequence])[0]
    assert seen == list(range(1, len(seen) + 1))
    assert len(result.token_ids) <= len(seen) * 4


def test_a_request_that_can_never_fit_is_refused(model):
    requests = checked(model, [prompt(300)], [Decoding(max_new_tokens=100)], [0])
    core = make_core(model, requests, num_pages=5)
    with pytest.raises(RequestError, match=r"prompt 0 .* 400 positions, .* holds 256"):
        core.submit(Sequence(requests[0], 0))
    with pytest.raises(RequestError, match=r"raise memory_gib"):
        Engine(model, backend="continuous", memory_gib=1e-6).generate([prompt(300)], Decoding(max_new_tokens=100))


def test_a_request_that_fails_leaves_the_others_alone(model):
    requests = mixed_requests(5)
    expected = Engine(model, backend="continuous").generate(*requests)
    used = {token for one in expected for token in (*one.prompt_ids, *one.token_ids)}
    unused = min(set(range(2, MASK)) - used)
    broken = tiny_model(max_positions=512, head_dim=model.config.head_dim).to(DEVICE)
    with torch.no_grad():
        broken.model.embed_tokens.weight[unused] = torch.nan
    prompts, decodings, seeds = requests
    results = Engine(broken, backend="continuous").generate(
        [*prompts, [unused, unused]], [*decodings, Decoding(max_new_tokens=8)], [*seeds, 0]
    )
    assert results[-1].finish_reason == "error"
    assert_same(results[:-1], expected)


def test_the_weights_stay_the_models_own(model):
    """Training in place changes what the engine decodes with; moving the model makes a new core."""
    asked = prompt(90)  # whole pages of it are remembered, as long as the weights are the same
    own = tiny_model(seed=4).to(DEVICE)
    engine = Engine(own, backend="continuous")
    before = engine.generate([asked], Decoding(max_new_tokens=20))
    core = engine.backend._core
    fresh = tiny_model(seed=5).to(DEVICE)
    own.load_state_dict(fresh.state_dict())
    after = engine.generate([asked], Decoding(max_new_tokens=20))
    assert_same(after, Engine(fresh, backend="plain").generate([asked], Decoding(max_new_tokens=20)))
    assert before[0].token_ids != after[0].token_ids
    assert engine.backend._core is core
    own.double()
    engine.generate([asked], Decoding(max_new_tokens=20))
    assert engine.backend._core is not core


def test_a_decoded_model_can_be_trained_and_saved(model, tmp_path):
    """Its parameters are views of joined weights by then."""
    own = tiny_model(seed=6).to(DEVICE)
    Engine(own, backend="continuous").generate([prompt(9)], Decoding(max_new_tokens=5))
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    own(input_ids=torch.tensor([prompt(8)], device=DEVICE)).logits.square().mean().backward()
    optimizer.step()
    save_model(own, tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device=DEVICE)
    for (name, saved), (_, parameter) in zip(loaded.named_parameters(), own.named_parameters(), strict=True):
        assert torch.equal(saved, parameter), name
    decoding = Decoding(max_new_tokens=20)
    assert_same(
        Engine(loaded, backend="plain").generate([prompt(9)], decoding),
        Engine(own, backend="continuous").generate([prompt(9)], decoding),
    )


def test_draws_follow_the_models_distribution(model):
    """Chi-square of first tokens against their probabilities; each request has a seed of its own."""
    count = 100_000 if DEVICE == "cuda" else 10_000
    decoding = Decoding(max_new_tokens=1, temperature=0.8, rule="sequential")
    tokens = prompt(8, seed=2)
    engine = Engine(model, backend="continuous", max_batch_size=1000)
    drawn = [one.token_ids[0] for one in engine.generate([tokens] * count, decoding)]
    observed = np.bincount(drawn, minlength=VOCAB)
    with torch.inference_mode():
        ids = torch.tensor([tokens + [MASK] * 4], device=DEVICE)
        sees = torch.ones((12, 12), dtype=torch.bool, device=DEVICE)
        sees[:4, 4:] = sees[4:8, 8:] = False
        additive = torch.zeros((1, 1, 12, 12), device=DEVICE).masked_fill(~sees, -torch.inf)
        logits = model(input_ids=ids, attention_mask=additive).logits[0, 8].double()
        logits[MASK] = -torch.inf
    expected = count * torch.softmax(logits / 0.8, dim=0).cpu().numpy()
    likely = expected >= 5
    assert observed[MASK] == 0
    statistic = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    degrees = likely.sum() - 1
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)

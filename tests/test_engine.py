"""The engine, on tiny random models: two ways to the same tokens, and what every response must satisfy."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.engine import Engine
from t3d.engine.plain import PlainEngine
from t3d.engine.rules import RULES
from t3d.errors import RequestError
from t3d.models import SDARConfig, SDARForCausalLM
from t3d.types import Decoding

torch.set_num_threads(1)

VOCAB, MASK, EOS = 40, 39, 1


def tiny_model(block_size=4, attention="sdpa", max_positions=128, seed=0, head_dim=8):
    torch.manual_seed(seed)
    config = SDARConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        mask_token_id=MASK,
        block_size=block_size,
        eos_token_id=EOS,
        initializer_range=0.4,
        max_position_embeddings=max_positions,
        attn_implementation=attention,
    )
    return SDARForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prompt(length, seed=0):
    return torch.randint(2, MASK, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def mixed_requests(count, block_size=4):
    """Prompts, settings and seeds that differ in everything."""
    rules = list(RULES)
    prompts = [prompt(1 + 5 * index % 13, seed=index) for index in range(count)]
    decodings = [
        Decoding(
            rule=rules[index % len(rules)],
            steps_per_block=1 + index % block_size,
            temperature=(0.0, 0.7, 1.3)[index % 3],
            top_k=(0, 7)[index % 2],
            top_p=(1.0, 0.9)[index // 2 % 2],
            threshold=0.3,
            entropy_bound=2.0,
            max_new_tokens=3 + 7 * index % 19,
            stop_token_ids=(3, 4) if index % 5 == 0 else None,
        )
        for index in range(count)
    ]
    return prompts, decodings, [1000 + index * index for index in range(count)]


def decoded(generations):
    return [(one.token_ids, one.reveal_steps, one.finish_reason) for one in generations]


def assert_same(left, right):
    assert decoded(left) == decoded(right)
    for one, other in zip(left, right, strict=True):
        assert one.confidences == pytest.approx(other.confidences, rel=1e-3)


# --- two ways to the same tokens ---


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_equals_recomputed(attention):
    model = tiny_model(attention=attention)
    requests = mixed_requests(24)
    assert_same(
        Engine(model).generate(*requests),
        Engine(model, backend=PlainEngine(model, use_cache=False)).generate(*requests),
    )


def test_fused_equals_unfused_and_saves_one_forward_per_committed_block(model):
    prompts, decodings, seeds = mixed_requests(24)
    fused = Engine(model).generate(prompts, decodings, seeds)
    unfused = Engine(model, backend=PlainEngine(model, fused_commit=False)).generate(prompts, decodings, seeds)
    assert_same(fused, unfused)
    for tokens, one, other in zip(prompts, fused, unfused, strict=True):
        first, last = len(tokens) // 4, (len(tokens) + len(one.token_ids) - 1) // 4
        assert other.num_forwards - one.num_forwards == last - first


@pytest.mark.parametrize("max_batch_size", [1, 2, 5, 16, 512])
def test_a_request_alone_equals_the_same_request_in_any_batch(model, max_batch_size):
    prompts, decodings, seeds = mixed_requests(16)
    alone = [
        Engine(model).generate([tokens], decoding, [seed])[0]
        for tokens, decoding, seed in zip(prompts, decodings, seeds, strict=True)
    ]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5)).tolist()
    together = Engine(model, max_batch_size=max_batch_size).generate(
        [prompts[i] for i in order], [decodings[i] for i in order], [seeds[i] for i in order]
    )
    assert_same([alone[i] for i in order], together)
    assert [alone[i].num_forwards for i in order] == [one.num_forwards for one in together]


def test_block_sizes_may_differ_in_one_call(model):
    prompts = [prompt(6, seed) for seed in range(4)]
    decodings = [Decoding(block_size=size, max_new_tokens=9) for size in (8, 4, 2, 8)]
    together = Engine(model).generate(prompts, decodings)
    assert_same(together, Engine(model, backend=PlainEngine(model, use_cache=False)).generate(prompts, decodings))
    assert [one.prompt_ids for one in together] == prompts


# --- what every response must satisfy ---


def check_response(generation, prompt_ids, decoding, block_size):
    length = len(generation.token_ids)
    assert generation.prompt_ids == prompt_ids
    assert 1 <= length <= decoding.max_new_tokens
    assert len(generation.reveal_steps) == len(generation.confidences) == length
    assert MASK not in generation.token_ids
    assert all(0 <= token < VOCAB for token in generation.token_ids)
    assert all(0 < confidence <= 1.00001 for confidence in generation.confidences)
    if generation.finish_reason == "stop":
        assert generation.token_ids.index(EOS) == length - 1
    else:
        assert generation.finish_reason == "length"
        assert length == decoding.max_new_tokens
        assert EOS not in generation.token_ids
    # Blocks are decoded one after the other, and each reveals at least one token a step.
    blocks = {}
    for place, step in enumerate(generation.reveal_steps, start=len(prompt_ids)):
        blocks.setdefault(place // block_size, []).append(step)
    steps = list(blocks.values())
    assert all(max(earlier) < min(later) for earlier, later in pairwise(steps))
    for block in steps[:-1]:
        assert set(block) == set(range(min(block), max(block) + 1))


@settings(max_examples=40, deadline=None)
@given(
    prompt_length=st.integers(1, 13),
    block_size=st.sampled_from([1, 2, 3, 4, 5, 8]),
    data=st.data(),
    rule=st.sampled_from(list(RULES)),
    temperature=st.sampled_from([0.0, 1.0]),
    max_new_tokens=st.integers(1, 17),
)
def test_any_request(model, prompt_length, block_size, data, rule, temperature, max_new_tokens):
    decoding = Decoding(
        block_size=block_size,
        steps_per_block=data.draw(st.integers(1, block_size)),
        rule=rule,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )
    prompts = [prompt(prompt_length, seed=0), prompt(3, seed=1)]
    cached = Engine(model).generate(prompts, decoding)
    for generation, prompt_ids in zip(cached, prompts, strict=True):
        check_response(generation, prompt_ids, decoding, block_size)
    assert_same(cached, Engine(model, backend=PlainEngine(model, use_cache=False)).generate(prompts, decoding))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps_per_block", [1, 2, 3, 4])
def test_prompt_tokens_are_never_overwritten(model, rule, steps_per_block):
    """For every P mod B the left-over prompt tokens reach the model as given, at every step."""
    seen = []
    handle = model.model.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    decoding = Decoding(rule=rule, steps_per_block=steps_per_block, temperature=1.0, max_new_tokens=9)
    prompts = [prompt(length, seed=length) for length in range(1, 10)]
    try:
        for prompt_ids in prompts:
            seen.clear()
            generation = Engine(model, stop_token_ids=()).generate([prompt_ids], decoding)[0]
            assert len(generation.token_ids) == 9
            for call in seen:
                for token, position in zip(call["input_ids"][0], call["position_ids"][0], strict=True):
                    if position < len(prompt_ids):
                        assert token == prompt_ids[position]
    finally:
        handle.remove()


@pytest.mark.parametrize("temperature, top_k", [(0.0, 0), (1.0, 0), (1.0, 1)])
def test_the_mask_token_never_appears_even_if_the_model_prefers_it(temperature, top_k):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[MASK] *= 1000
    generations = Engine(model, stop_token_ids=()).generate(
        [prompt(5, seed) for seed in range(8)], Decoding(temperature=temperature, top_k=top_k, max_new_tokens=12)
    )
    for generation in generations:
        assert MASK not in generation.token_ids
        assert min(generation.reveal_steps) == 1


# --- forwards ---


@pytest.mark.parametrize("prompt_length", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("steps_per_block", [1, 2, 3, 4])
def test_forwards_are_one_prefill_and_t_per_block_none_for_the_last_commit(prompt_length, steps_per_block):
    model = tiny_model()
    calls = []
    model.model.register_forward_pre_hook(lambda *call: calls.append(1), with_kwargs=True)
    engine = Engine(model, stop_token_ids=())
    new_tokens = 12 - prompt_length % 4  # whole blocks
    generation = engine.generate(
        [prompt(prompt_length)], Decoding(steps_per_block=steps_per_block, max_new_tokens=new_tokens)
    )[0]
    quotas = [4 // steps_per_block + (step < 4 % steps_per_block) for step in range(steps_per_block)]
    unknown = 4 - prompt_length % 4
    first = next(step for step in range(1, 5) if sum(quotas[:step]) >= unknown)
    steps = first + 2 * steps_per_block
    assert generation.num_forwards == (prompt_length >= 4) + steps == len(calls)
    assert max(generation.reveal_steps) == steps


def test_static_steps_reveal_their_quota(model):
    generation = Engine(model, stop_token_ids=()).generate(
        [prompt(4)], Decoding(rule="sequential", steps_per_block=3, max_new_tokens=8)
    )[0]
    assert generation.reveal_steps == [1, 1, 2, 3, 4, 4, 5, 6]


# --- stopping ---


def constant_model(token, **kwargs):
    """A model that is sure of one token everywhere."""
    model = tiny_model(**kwargs)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(16, VOCAB)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 20.0
    return model


def test_eos_in_the_first_partial_block_stops_inclusive():
    generation = Engine(constant_model(EOS)).generate([prompt(6)], Decoding(max_new_tokens=20))[0]
    assert (generation.token_ids, generation.finish_reason) == ([EOS], "stop")
    assert generation.num_forwards == 1 + 2  # the block is denoised whole


def test_stop_ids_of_the_engine_and_of_the_request():
    model = constant_model(7)
    assert Engine(model, stop_token_ids=(7,)).generate([prompt(6)], Decoding(max_new_tokens=20))[0].token_ids == [7]
    asked = Decoding(stop_token_ids=(9, 7), max_new_tokens=20)
    mixed = Engine(model).generate([prompt(6)] * 2, [asked, replace(asked, stop_token_ids=None)])
    assert [(len(one.token_ids), one.finish_reason) for one in mixed] == [(1, "stop"), (20, "length")]


def test_a_stop_token_of_the_prompt_does_not_count():
    generation = Engine(constant_model(7)).generate([[2, 3, 4, 5, 6, EOS]], Decoding(max_new_tokens=5))[0]
    assert generation.finish_reason == "length"
    assert generation.token_ids == [7] * 5


@pytest.mark.parametrize("max_new_tokens", range(1, 10))
def test_max_new_tokens_cuts_the_last_block(model, max_new_tokens):
    engine = Engine(model, stop_token_ids=())
    long = engine.generate([prompt(6)], Decoding(max_new_tokens=20))[0]
    short = engine.generate([prompt(6)], Decoding(max_new_tokens=max_new_tokens))[0]
    assert short.token_ids == long.token_ids[:max_new_tokens]
    assert short.reveal_steps == long.reveal_steps[:max_new_tokens]
    assert short.finish_reason == "length"


def test_a_stop_token_beyond_the_limit_does_not_count():
    model = tiny_model()
    whole = Engine(model, stop_token_ids=()).generate([prompt(4)], Decoding(max_new_tokens=4))[0]
    stop = whole.token_ids[3]
    limit = whole.token_ids.index(stop)
    if limit > 0:
        cut = Engine(model, stop_token_ids=(stop,)).generate([prompt(4)], Decoding(max_new_tokens=limit))[0]
        assert (cut.finish_reason, len(cut.token_ids)) == ("length", limit)


# --- failing ---


def test_a_request_with_logits_that_are_not_finite_fails_alone():
    model = tiny_model()
    poison = 17
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = torch.nan
        model.lm_head = torch.nn.Linear(16, VOCAB, bias=False)  # untied: only the input is poisoned
    prompts = [[token for token in prompt(6, seed) if token != poison] for seed in range(6)]
    bad = [2, poison, 4, 5, 6]
    decoding = Decoding(max_new_tokens=11, temperature=1.0, stop_token_ids=(poison,))
    good = Engine(model).generate(prompts, decoding, seeds=range(6))
    mixed = Engine(model, max_batch_size=2).generate([bad, *prompts, bad], decoding, seeds=[9, *range(6), 9])
    assert_same(good, mixed[1:-1])
    for failed in (mixed[0], mixed[-1]):
        assert failed.finish_reason == "error"
        assert "finite" in failed.error
        assert (failed.token_ids, failed.reveal_steps, failed.confidences) == ([], [], [])


@pytest.mark.parametrize(
    "prompts, decoding, seeds, words",
    [
        ([[]], Decoding(), None, "prompt 0 is empty"),
        ([[2], [2, VOCAB]], Decoding(max_new_tokens=9), None, "prompt 1 has token id 40"),
        ([[-1]], Decoding(), None, "token id -1"),
        ([[2, MASK]], Decoding(), None, "mask token"),
        ([[2]], Decoding(rule="best"), None, "rule 'best' is unknown.*sequential.*entropy_bounded"),
        ([[2]], Decoding(steps_per_block=5), None, "steps_per_block must be at most"),
        ([[2] * 100], Decoding(max_new_tokens=29), None, "128 positions"),
        ([[2]], [Decoding(), Decoding()], None, "decoding has 2 entries for 1 prompts"),
        ([[2], [3]], Decoding(), [1], "seeds has 1 entries for 2 prompts"),
        ([[2]], Decoding(), [-1], "seeds: -1"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(model, prompts, decoding, seeds, words):
    with pytest.raises(RequestError, match=words) as refusal:
        Engine(model).generate(prompts, decoding, seeds)
    assert "\n" not in str(refusal.value)


def test_wrong_engines_are_refused(model):
    with pytest.raises(RequestError, match="max_batch_size"):
        Engine(model, max_batch_size=0)
    with pytest.raises(RequestError, match="tokenizer"):
        Engine(model).generate_text(["a"])


# --- the facade ---


def test_seeds_and_on_finish(model):
    finished = {}
    engine = Engine(model, max_batch_size=3)
    decoding = Decoding(temperature=1.0, max_new_tokens=12, seed=4)
    first = engine.generate([prompt(5)] * 8, decoding, on_finish=finished.__setitem__)
    assert finished == dict(enumerate(first))
    assert len({tuple(one.token_ids) for one in first}) > 1  # samples of one prompt differ
    again = engine.generate([prompt(5)] * 8, decoding, seeds=[one.seed for one in first])
    assert decoded(again) == decoded(first)
    own = engine.generate([prompt(5)] * 2, [replace(decoding, seed=first[3].seed)] * 2)
    assert decoded(own) == decoded([first[3]] * 2)


def test_nothing_to_do(model):
    assert Engine(model).generate([]) == []


class Letters:
    """The two calls of a tokenizer that the engine makes."""

    eos_token_id = EOS

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [2 + ord(letter) - ord("a") for letter in text]

    def decode(self, token_ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(token - 2 + ord("a")) for token in token_ids if token >= 2)


def test_generate_text_tokenises_once_and_fills_in_the_text(model):
    engine = Engine(model, Letters())
    seen = []
    generations = engine.generate_text(
        ["abc", "hello"], Decoding(max_new_tokens=6), on_finish=lambda index, one: seen.append((index, one.text))
    )
    assert generations[1].prompt_ids == [9, 6, 13, 13, 16]
    assert sorted(seen) == [(index, one.text) for index, one in enumerate(generations)]
    assert all(one.text == Letters().decode(one.token_ids, True) for one in generations)


def test_a_model_in_training_is_decoded_without_dropout_and_given_back(model):
    lent = tiny_model()
    lent.config.attention_dropout = 0.5
    lent.train()
    request = [prompt(6)], Decoding(max_new_tokens=20)
    assert_same(Engine(lent).generate(*request), Engine(tiny_model()).generate(*request))
    assert lent.training
    assert lent.config._attn_implementation == "sdpa"
    lent(input_ids=torch.tensor([prompt(8)])).logits.sum().backward()  # its tensors still take gradients


def test_lower_precision_decodes(model):
    generations = Engine(tiny_model().to(torch.bfloat16)).generate(*mixed_requests(8))
    assert all(one.finish_reason in ("stop", "length") for one in generations)


def test_long_batches_split_the_prefill_and_the_logits(model, monkeypatch):
    requests = mixed_requests(20)
    whole = Engine(model).generate(*requests)
    monkeypatch.setattr("t3d.engine.plain.runner.CPU_PREFILL_TOKENS", 16)
    monkeypatch.setattr("t3d.engine.plain.runner.LOGITS_PER_CHUNK", 3 * VOCAB)
    parts = Engine(model).generate(*requests)
    assert_same(whole, parts)
    assert [one.num_forwards for one in whole] == [one.num_forwards for one in parts]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_tokens_of_the_cpu():
    requests = mixed_requests(32)
    on_cpu = Engine(tiny_model()).generate(*requests)
    on_cuda = Engine(tiny_model().to("cuda"), max_batch_size=7).generate(*requests)
    assert_same(on_cpu, on_cuda)


def test_memory_decides_the_batch_size(model, monkeypatch):
    from t3d.engine.plain.cache import rows_that_fit

    def rows(positions):
        return rows_that_fit(model.config, positions, torch.float32, torch.device("cpu"))

    bytes_per_position = 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr("t3d.engine.plain.cache.CPU_BUDGET_BYTES", 10 * 100 * bytes_per_position)
    assert rows(99) == 10
    assert rows(10**6) == 1
    assert rows(0) == 512
    assert rows(9) == 100

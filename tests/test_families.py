"""What every model family owes: transformers' own arithmetic, both backends alike, training, saving and loading."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import json

import pytest
import torch
from test_engine import EOS, MASK, VOCAB, assert_same, mixed_requests, prompt
from tiny import noisy_example, random_row, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from training_runs import inputs, recipe_of  # noqa: F401
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from t3d.bench.shapes import build_model, shape_config
from t3d.config import AdapterConfig
from t3d.corruption import pack
from t3d.engine import Engine
from t3d.engine.engine import default_backend
from t3d.engine.plain import PlainEngine
from t3d.errors import RequestError
from t3d.models import FAMILIES, SDARConfig, load_config, load_model, load_tokenizer, random_model, save_model
from t3d.models.experts import every_expert, grouped_experts
from t3d.training import Trainer, train
from t3d.training.adapters import AdaptedStudent, add_adapters
from t3d.training.scorer import Scorer
from t3d.training.throughput import Work, forward_flops
from t3d.types import Decoding

torch.set_num_threads(1)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ORIGINALS = {
    "sdar": (Qwen3Config, Qwen3ForCausalLM),
    "sdar_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "block_llama": (LlamaConfig, LlamaForCausalLM),
    "block_qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    **{family: {"family": family} for family in FAMILIES},
    "llama 3's rotary embedding": {"family": "block_llama", "rope_parameters": LLAMA_3},
    "experts in every other layer": {"family": "sdar_moe", "decoder_sparse_step": 2, "norm_topk_prob": False},
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_kind = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
BIASED = {"family": "block_llama", "attention_bias": True, "mlp_bias": True}


def decoding_model(**fields):
    """In float32, three query heads to a key-value head, of a size that Triton's kernels take."""
    shapes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    tokens = {"vocab_size": VOCAB, "mask_token_id": MASK, "eos_token_id": EOS, "max_position_embeddings": 512}
    return tiny_model(dtype=torch.float32, **{**shapes, **tokens, **fields}).to(DEVICE)


def original_of(model):
    """transformers' own model of the same shapes and weights."""
    config_class, model_class = ORIGINALS[model.config.model_type]
    fields = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    fields["experts_implementation"] = "eager"  # the others have no float64
    original = model_class(config_class(**fields)).to(model.device, model.dtype).eval()
    original.load_state_dict(model.state_dict())
    return original


def original_logits(model, tokens, block_size=4):
    """[S, V] by transformers' own model of tokens of which each sees its own block and the earlier ones."""
    places = range(len(tokens))
    sees = [[key // block_size <= query // block_size for key in places] for query in places]
    mask = torch.zeros(len(tokens), len(tokens), device=model.device, dtype=model.dtype)
    mask.masked_fill_(~torch.tensor(sees, device=model.device), -torch.inf)
    with torch.no_grad():
        ids = torch.tensor([tokens], device=model.device)
        return original_of(model)(input_ids=ids, attention_mask=mask[None, None]).logits[0]


# Decoding


@every_kind
@pytest.mark.parametrize("backend", ["plain", "continuous"])
@pytest.mark.parametrize("length", [8, 14, 41])
def test_the_first_step_is_transformers_own(fields, backend, length):
    """The most confident of the first block's tokens, and its probability: no shift, nothing but the blocks' mask."""
    model = decoding_model(**fields)
    tokens = prompt(length, seed=length)
    known = length % 4
    (decoded,) = Engine(model, backend=backend, stop_token_ids=[]).generate([tokens], Decoding(max_new_tokens=4))
    logits = original_logits(model, [*tokens, *[MASK] * (4 - known)])[length:].double()
    logits[:, MASK] = -torch.inf
    probabilities, ids = logits.softmax(dim=-1).max(dim=-1)
    place = int(probabilities.argmax())
    assert decoded.reveal_steps[place] == 1
    assert decoded.token_ids[place] == ids[place]
    assert decoded.confidences[place] == pytest.approx(float(probabilities[place]), rel=1e-4)


@every_kind
def test_cached_equals_recomputed(fields):
    model, requests = decoding_model(**fields), mixed_requests(24)
    assert_same(
        Engine(model, backend="plain").generate(*requests),
        Engine(model, backend=PlainEngine(model, use_cache=False)).generate(*requests),
    )


@every_kind
def test_backends_agree(fields):
    model, requests = decoding_model(**fields), mixed_requests(40)
    continuous = Engine(model, backend="continuous").generate(*requests)
    plain = Engine(model, backend="plain").generate(*requests)
    assert_same(continuous, plain)
    assert [one.num_forwards for one in continuous] == [one.num_forwards for one in plain]


@every_family
def test_a_decoded_models_parameters_stay_its_own(family):
    """Weights and biases that were joined follow training in place, and are joined once."""
    model, fresh = decoding_model(family=family), decoding_model(family=family, seed=1)
    engine, requests = Engine(model, backend="continuous"), mixed_requests(6)
    engine.generate(*requests)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    model.load_state_dict(fresh.state_dict())
    assert_same(engine.generate(*requests), Engine(fresh, backend="plain").generate(*requests))
    Engine(model, backend="continuous").generate(*requests)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


@pytest.mark.parametrize("compute", [every_expert, grouped_experts])
def test_what_graphs_capture_of_a_mixture_decodes_the_same(compute, monkeypatch):
    """On the CPU, where nothing is captured, the engine would take transformers' loop."""
    model, requests = decoding_model(family="sdar_moe"), mixed_requests(24)
    monkeypatch.setattr("t3d.engine.continuous.decoder.capturable_experts", lambda dtype, device: compute)
    assert_same(
        Engine(model, backend="continuous").generate(*requests), Engine(model, backend="plain").generate(*requests)
    )


def test_biases_that_the_kernels_do_not_add_are_left_to_the_plain_backend():
    model, requests = decoding_model(**BIASED), mixed_requests(8)
    with pytest.raises(RequestError, match=r"self_attn\.o_proj has a bias; use the plain one"):
        Engine(model, backend="continuous")
    assert default_backend(model) == "plain"
    assert_same(
        Engine(model).generate(*requests),
        Engine(model, backend=PlainEngine(model, use_cache=False)).generate(*requests),
    )


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["block_llama", "block_qwen2"])
def test_backends_agree_on_smollm2s_shapes(family):
    """The fast kernels with hidden size 576, nine query and three key-value heads, 49,216 tokens; four layers."""
    _, model_class = FAMILIES[family]
    config_class = model_class.config_class
    fields = {**shape_config("smollm2-135m").to_dict(), "num_hidden_layers": 4, "initializer_range": 0.06}
    fields = {key: value for key, value in fields.items() if key != "model_type"}
    model = build_model(config_class(**fields), torch.device("cuda"), torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    prompts = [[7 * place * (index + 3) % 49_000 for place in range(5 + 9 * index)] for index in range(40)]
    decodings = [
        Decoding(steps_per_block=1 + index % 4, temperature=index % 2 * 0.8, max_new_tokens=8 + index)
        for index in range(40)
    ]
    continuous, plain = (Engine(model, backend=name, stop_token_ids=[]) for name in ("continuous", "plain"))
    assert_same(continuous.generate(prompts, decodings), plain.generate(prompts, decodings))
    alone, few = continuous.generate(prompts[:1], decodings[:1]), continuous.generate(prompts[:3], decodings[:3])
    expected = plain.generate(prompts[:3], decodings[:3])
    assert_same([*alone, *few], [expected[0], *expected])


# Training


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_training_forward_is_transformers_own(family, attention):
    """At every token with loss: what transformers' model says of the text that decoding would show there."""
    model = tiny_model(family=family, attn_implementation=attention)
    example = noisy_example(random_row("row", 6, 9), ratios=(0.5,), random_token_share=0.3)
    batch = pack([example], row_tokens=None, block_size=4, num_examples_in_step=1)
    with torch.no_grad():
        scores = Scorer(model)(batch, torch.arange(model.config.vocab_size).expand(len(batch.tokens.targets), -1))
        expected = []
        for place in batch.loss_index.tolist():
            position = int(batch.position_ids[0, place])
            start = position // 4 * 4
            offset = start - example.noisy_start
            tokens = [*example.clean_ids[:start], *example.noisy_ids[offset : offset + 4]]
            logits = original_logits(tiny_model(family=family), [int(token) for token in tokens])
            expected.append(logits[position].log_softmax(dim=-1))
    torch.testing.assert_close(scores.logp.double(), torch.stack(expected), atol=1e-4, rtol=0)


@every_family
@pytest.mark.parametrize("objective", ["t3d", "sft"])
def test_one_optimizer_step_moves_every_weight(family, objective, inputs, tmp_path):
    shapes = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 6}
    init = {"model_type": family, "num_key_value_heads": 2, "initializer_range": 0.1, "block_size": 4, **shapes}
    model = {"init": init, "tokenizer": str(inputs / "model")}
    recipe = recipe_of(inputs, tmp_path, model=model, objective={"name": objective}, optim__steps=1)
    trained = train(recipe)
    start = random_model(init, load_tokenizer(inputs / "model"), seed=recipe.seed)
    assert type(trained) is FAMILIES[family][1]
    unmoved = {
        name
        for (name, weight), (_, before) in zip(trained.named_parameters(), start.named_parameters(), strict=True)
        if torch.equal(weight.float(), before)
    }
    assert unmoved == set()
    loaded = load_model(tmp_path / "model", device="cpu")
    assert loaded.config.model_type == family
    for (name, weight), (_, saved) in zip(trained.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(weight.float(), saved.float()), name


@every_family
def test_adapters_merge_into_a_plain_model(family):
    model = tiny_model(dtype=torch.float32, family=family)
    student = AdaptedStudent(add_adapters(model, AdapterConfig(rank=3), torch.float32, seed=0))
    with torch.no_grad():
        for index, weight in enumerate(student.trainable().values()):
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
        ids = torch.arange(2, 26).reshape(2, 12)
        wanted, exported = student.model(input_ids=ids).logits, student.exported()
        torch.testing.assert_close(exported(input_ids=ids).logits, wanted, atol=1e-3, rtol=1e-3)
        plain = tiny_model(dtype=torch.float32, family=family)
        assert exported.state_dict().keys() == plain.state_dict().keys()
        assert (plain(input_ids=ids).logits - wanted).abs().max() > 0.1


@every_family
def test_flops_are_those_that_torch_counts(family):
    model, length = tiny_model(family=family, num_attention_heads=8, attn_implementation="eager"), 10
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(length)[None])
    rotary = 2 * model.config.head_dim // 2 * length  # the angles, an outer product that torch takes for a matrix's
    work = Work(num_tokens=length, num_pairs=length**2, num_scored=length, num_examples=1)
    assert counter.get_total_flops() - rotary == forward_flops(model.config, work)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@every_family
def test_fast_training_is_plain_training(family, inputs, tmp_path):
    """FlexAttention with three query heads to a key-value head and compiled layers: the same run up to rounding."""
    shapes = {"hidden_size": 192, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    init = {"model_type": family, "num_key_value_heads": 1, "head_dim": 64, "block_size": 4, **shapes}
    fields = {"model": {"init": init, "tokenizer": str(inputs / "model")}, "device": "cuda", "precision": "fp32"}
    train(recipe_of(inputs, tmp_path / "plain", compute={"attention": "sdpa", "compile": False}, **fields))
    trainer = Trainer(recipe_of(inputs, tmp_path / "fast", **fields))
    assert trainer.learner.computing.attention == "flex"
    trainer.run()
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("fast", "plain")]
    for fast, plain in zip(*lines, strict=True):
        assert json.loads(fast)["loss"] == pytest.approx(json.loads(plain)["loss"], rel=1e-3)


# Saving and loading


@every_kind
def test_a_saved_model_loads_as_what_it_was(fields, tmp_path):
    model = decoding_model(**fields).cpu()
    save_model(model, tmp_path)
    loaded, config = load_model(tmp_path, device="cpu"), load_config(tmp_path)
    ids = torch.tensor([prompt(40)])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        through_transformers = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(through_transformers(input_ids=ids).logits, expected)
    assert type(loaded) is type(through_transformers) is type(model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config) is type(model.config)
    assert (config.mask_token_id, config.block_size, config.head_dim) == (MASK, 4, 16)
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == fields["family"]
    assert stored["architectures"] == [type(model).__name__]


def test_llama_3s_rotary_embedding_is_read_as_older_releases_wrote_it(tmp_path):
    model = decoding_model(family="block_llama", rope_parameters=LLAMA_3).cpu()
    save_model(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["rope_parameters"]
    fields["rope_scaling"] = {key: value for key, value in LLAMA_3.items() if key != "rope_theta"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ids = torch.tensor([prompt(40)])
    with torch.no_grad():
        read = load_model(tmp_path, device="cpu")(input_ids=ids).logits
        assert torch.equal(read, model(input_ids=ids).logits)
        unscaled = decoding_model(family="block_llama", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
        assert not torch.allclose(read, unscaled.cpu()(input_ids=ids).logits, atol=1e-2)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rotary_embedding_that_depends_on_the_length_is_refused(kind, tmp_path):
    fields = SDARConfig(vocab_size=VOCAB, mask_token_id=MASK).to_dict()
    short = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64} if kind == "longrope" else {"factor": 2.0}
    fields["rope_parameters"] = {"rope_type": kind, "rope_theta": 1e4, **short}
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in fields.items() if key != "dtype"}))
    with pytest.raises(RequestError, match=f"type '{kind}' is not supported: use default, linear, llama3, yarn"):
        load_config(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", ["sdar"], None])
def test_a_random_model_of_no_family_is_one_line(model_type):
    with pytest.raises(RequestError, match=r"unknown model_type .*; use one of sdar, sdar_moe, block_l") as said:
        random_model({"model_type": model_type}, load_tokenizer("story-tokenizer"))
    assert "\n" not in str(said.value)


def test_smollm2s_shapes_are_the_released_models():
    """134,515,008 parameters by its card, and 64 rows of the vocabulary for a mask token."""
    config_class, model_class = FAMILIES["block_llama"]
    with torch.device("meta"):
        model = model_class(config_class(**{**shape_config("smollm2-135m").to_dict(), "vocab_size": 49_152}))
    assert model.num_parameters() == 134_515_008
    assert shape_config("smollm2-135m").mask_token_id == 49_152 < shape_config("smollm2-135m").vocab_size


def test_a_head_is_the_hidden_size_over_the_heads_unless_given():
    for family, (config_class, _) in FAMILIES.items():
        if family != "sdar":  # Qwen3 has its own default
            assert config_class(hidden_size=96, num_attention_heads=6).head_dim == 16
        assert config_class(hidden_size=96, num_attention_heads=6, head_dim=32).head_dim == 32

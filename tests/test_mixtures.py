"""Mixtures of experts: every way to compute them is the sum by hand, files have the hub's names, counts are by hand."""

import json
from math import comb

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MASK, MIXTURE, tiny_model
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward

from t3d.bench.roofline import ModelFacts, decode_cost, model_facts, prefill_cost
from t3d.bench.shapes import shape_config
from t3d.engine.continuous.counters import Counters
from t3d.errors import RequestError
from t3d.models import FAMILIES, SDARMoeConfig, active_parameters, load_config, load_model, save_model
from t3d.models import experts as ways
from t3d.models.counting import FeedForward, feed_forward_of
from t3d.models.experts import capturable_experts, every_expert, experts_forward, grouped_experts, hit_experts
from t3d.training.throughput import Work, forward_flops

torch.set_num_threads(1)

WAYS = {
    "loop": hit_experts,
    "grouped": grouped_experts,
    "gathered": batched_mm_experts_forward,
    "every expert": every_expert,
    "as chosen": experts_forward,
}
IDS = torch.arange(2, 26).reshape(2, 12)


def mixture(**fields):
    """A tiny model's first router and experts, and float32 [7, 16] to send through them."""
    block = tiny_model(dtype=torch.float32, family="sdar_moe", **fields).model.layers[0].mlp
    hidden = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    return block, hidden.requires_grad_()


def by_hand(block, hidden, normalised):
    """What each token gets, one expert at a time."""
    up_rows = MIXTURE["moe_intermediate_size"]
    rows = []
    for token in hidden:
        odds = (block.gate.weight @ token).exp()
        probabilities = odds / odds.sum()
        first, second = sorted(range(6), key=lambda expert: -float(probabilities[expert]))[:2]
        total = probabilities[first] + probabilities[second] if normalised else 1.0
        row = torch.zeros_like(token)
        for expert in (first, second):
            gate_up, down = block.experts.gate_up_proj[expert], block.experts.down_proj[expert]
            gate, up = gate_up[:up_rows] @ token, gate_up[up_rows:] @ token
            row = row + probabilities[expert] / total * (down @ (silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_sum_by_hand(way, normalised):
    block, hidden = mixture(norm_topk_prob=normalised)
    expected = by_hand(block, hidden, normalised)
    found = ways.mixture_forward(block, hidden, WAYS[way])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    inputs, weight = [hidden, *block.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad((output * weight).sum(), inputs) for output in (found, expected)]
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-3, rtol=1e-3)


def test_the_layers_themselves_take_the_chosen_way():
    block, hidden = mixture()
    model = tiny_model(dtype=torch.float32, family="sdar_moe")
    assert model.config._experts_implementation == ways.EXPERTS
    torch.testing.assert_close(block(hidden[None])[0], by_hand(block, hidden, True), atol=1e-4, rtol=1e-4)
    asked = tiny_model(dtype=torch.float32, family="sdar_moe", experts_implementation="batched_mm")
    assert asked.config._experts_implementation == "batched_mm"


def test_every_expert_in_parts_is_the_whole(monkeypatch):
    block, hidden = mixture()
    whole = ways.mixture_forward(block, hidden, every_expert)
    monkeypatch.setattr(ways, "CHUNK_NUMBERS", 6 * 16 * 2)  # two tokens
    torch.testing.assert_close(ways.mixture_forward(block, hidden, every_expert), whole)


@pytest.mark.parametrize("way", ["loop", "grouped", "every expert", "as chosen"])
def test_autocast_reaches_the_experts(way):
    """What is added to the residual stream has its dtype; the weights stay as they are held, and get the gradients."""
    block, hidden = mixture()
    expected = by_hand(block, hidden, True)
    with torch.autocast("cpu", torch.bfloat16):
        _, weights, chosen = block.gate(hidden)
        lowered = hidden if way == "as chosen" else hidden.bfloat16()
        output = WAYS[way](block.experts, lowered, chosen, weights)
    assert output.dtype == torch.bfloat16
    assert float((output - expected).norm() / expected.norm()) < 0.02
    (output * torch.ones_like(output)).sum().backward()
    assert block.experts.gate_up_proj.grad.dtype == block.experts.down_proj.grad.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_what_a_graph_can_capture_asks_nothing_of_the_host(way):
    """Tensors without values stand for a capture: the loop has to know which experts were hit, the others do not."""
    experts = tiny_model(dtype=torch.bfloat16, family="sdar_moe").model.layers[0].mlp.experts
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        hidden = torch.empty(5, 16, dtype=torch.bfloat16)
        chosen, weights = torch.zeros(5, 2, dtype=torch.int64), torch.empty(5, 2, dtype=torch.bfloat16)
        if way in ("loop", "as chosen"):  # on the CPU, where nothing is captured
            with pytest.raises(DynamicOutputShapeException):
                WAYS[way](experts, hidden, chosen, weights)
        else:
            assert WAYS[way](experts, hidden, chosen, weights).shape == (5, 16)


@pytest.mark.parametrize(
    "device, dtype, capability, way",
    [
        ("cpu", torch.bfloat16, None, hit_experts),
        ("cuda", torch.bfloat16, (9, 0), grouped_mm_experts_forward),
        ("cuda", torch.bfloat16, (10, 0), grouped_mm_experts_forward),
        ("cuda", torch.bfloat16, (8, 0), every_expert),
        ("cuda", torch.bfloat16, (12, 0), every_expert),
        ("cuda", torch.float32, (9, 0), every_expert),
    ],
)
def test_the_way_inside_a_graph(device, dtype, capability, way, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert capturable_experts(dtype, torch.device(device)) is way


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_graph_follows_what_its_tokens_choose(dtype):
    """Captured once, replayed with other tokens, which hit other experts."""
    model = tiny_model(dtype=dtype, family="sdar_moe").cuda()
    block, compute = model.model.layers[0].mlp, capturable_experts(dtype, torch.device("cuda"))
    first, other = torch.randn(2, 8, 16, device="cuda", dtype=dtype)
    held, graph = first.clone(), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        ways.mixture_forward(block, held, compute)
        with torch.cuda.graph(graph):
            output = ways.mixture_forward(block, held, compute)
        for hidden in (other, first):
            held.copy_(hidden)
            graph.replay()
            expected = ways.mixture_forward(block, hidden, hit_experts)
            assert float((output - expected).norm() / expected.norm()) < (2e-2 if dtype == torch.bfloat16 else 1e-4)


# Files


def hub_tensors(model):
    """A model's weights by the released files' names: three matrices an expert."""
    tensors = {}
    for name, weight in model.state_dict().items():
        layer, found, kind = name.partition(".mlp.experts.")
        if not found:
            tensors[name] = weight.clone()
            continue
        for expert, matrix in enumerate(weight):
            parts = {"down_proj": matrix}
            if kind == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))
            for part, values in parts.items():
                tensors[f"{layer}.mlp.experts.{expert}.{part}.weight"] = values.clone()
    return tensors


def assert_same_tensors(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_saved_weights_have_the_hubs_names_and_load_bit_for_bit(tmp_path):
    model = tiny_model(dtype=torch.float32, family="sdar_moe", mlp_only_layers=[1])
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.5.gate_proj.weight" in stored
    assert "model.layers.1.mlp.gate_proj.weight" in stored
    assert_same_tensors(stored, hub_tensors(model))
    assert_same_tensors(load_model(tmp_path, device="cpu").state_dict(), model.state_dict())


RELEASED = {
    "architectures": ["SDARMoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_sdar_moe.SDARMoeConfig"},
    "block_size": 4,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""As Qwen3-30B-A3B's, with what SDAR adds; in the names of transformers 4."""


def test_the_released_config_is_read_and_written_in_its_own_names(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    config = load_config(tmp_path)
    assert type(config) is SDARMoeConfig
    stored = config.to_dict()
    renamed = {"auto_map", "rope_scaling", "torch_dtype", "max_window_layers"}
    assert {key: stored[key] for key in RELEASED.keys() - renamed} == {
        key: value for key, value in RELEASED.items() if key not in renamed
    }
    assert "num_local_experts" not in stored  # which servers on older releases do not know
    bench = shape_config("sdar-30b-a3b")
    for field in ("hidden_size", "head_dim", "num_experts", "num_experts_per_tok", "moe_intermediate_size"):
        assert getattr(bench, field) == getattr(config, field)


def test_a_folder_as_older_releases_wrote_it(tmp_path):
    """Their config, their names, weights in two files; the logits are those of transformers' own Qwen3-MoE."""
    torch.manual_seed(0)
    shapes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    shapes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 31, **MIXTURE}
    original = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shapes, initializer_range=0.5)).eval()
    fields = {**RELEASED, **shapes, "mask_token_id": MASK, "torch_dtype": "float32", "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = hub_tensors(original)
    halves = {"model-1.safetensors": sorted(tensors)[::2], "model-2.safetensors": sorted(tensors)[1::2]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / name, metadata={"format": "pt"})
    places = {key: name for name, keys in halves.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = load_model(tmp_path, device="cpu")
    original.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)


@pytest.mark.parametrize("lost", ["experts.3.up_proj", "experts.5.down_proj", "gate"])
def test_a_folder_that_lacks_a_matrix_is_refused(lost, tmp_path):
    model = tiny_model(dtype=torch.float32, family="sdar_moe")
    save_model(model, tmp_path)
    tensors = hub_tensors(model)
    del tensors[f"model.layers.1.mlp.{lost}.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="weights") as refusal:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(refusal.value)


# Counting


def test_the_30b_shape_is_the_released_models():
    """30.5 billion weights, 3.3 of them for a token, by its card; each number here is one of a matrix's sides."""
    with torch.device("meta"):
        model = FAMILIES["sdar_moe"][1](shape_config("sdar-30b-a3b"))
    attention = 2048 * 128 * (32 + 4 + 4 + 32) + 2 * 128
    expert, router, norms = 3 * 2048 * 768, 2048 * 128, 2 * 2048
    both_ends = 2 * 151_936 * 2048 + 2048
    assert model.num_parameters() == both_ends + 48 * (attention + norms + router + 128 * expert) == 30_532_122_624
    assert active_parameters(model) == both_ends + 48 * (attention + norms + router + 8 * expert) == 3_353_032_704


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_models_are_active_as_a_whole(family):
    model = tiny_model(family=family)
    idle = 2 * (6 - 2) * 3 * 16 * 8 if family == "sdar_moe" else 0  # layers, experts, an expert's three matrices
    assert model.num_parameters() - active_parameters(model) == idle


@pytest.mark.parametrize("fields", [{}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}, {"num_hidden_layers": 5}])
def test_a_configs_counts_are_its_models(fields):
    model = tiny_model(family="sdar_moe", **fields)
    parts = feed_forward_of(model.config)
    matrices = sum(weight.numel() for layer in model.model.layers for weight in layer.mlp.parameters())
    assert parts.shared + parts.held * parts.expert == matrices
    assert matrices - parts.active == model.num_parameters() - active_parameters(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.set_attn_implementation("eager")
        model(input_ids=torch.arange(10)[None])
    rotary = 2 * model.config.head_dim // 2 * 10
    work = Work(num_tokens=10, num_pairs=100, num_scored=10, num_examples=1)
    assert counter.get_total_flops() - rotary == forward_flops(model.config, work)


def test_how_many_experts_are_hit():
    """Each of n tokens misses an expert with probability 1 - used / held: summed over all ways to draw, by hand."""
    parts = FeedForward(shared=6, expert=5, held=8, used=2)
    assert parts.active == 6 + 2 * 5
    assert (parts.hit(0), parts.hit(1), parts.hit(2)) == (0, 2, 8 - 8 * 9 / 16)
    for num_tokens in (3, 9):
        drawn = [comb(num_tokens, k) * 0.25**k * 0.75 ** (num_tokens - k) for k in range(1, num_tokens + 1)]
        assert parts.hit(num_tokens) == pytest.approx(8 * sum(drawn))
    assert FeedForward(shared=6).hit(3) == 0


def test_a_mixtures_roofline_by_hand():
    """Two steps of three rows in blocks of two, one of which commits: seven tokens a step hit the experts."""
    parts = FeedForward(shared=0, expert=5, held=8, used=2)
    facts = ModelFacts(2, 10, 30, 100, query_width=8, bytes_per_position=16, itemsize=2, feed_forward=parts)
    dense = ModelFacts(2, 10, 30, 100, query_width=8, bytes_per_position=16, itemsize=2)
    counters = Counters(num_steps=2, num_rows=6, num_commits=1, num_masked=9, num_context=30)
    more = decode_cost(facts, 2, counters).num_bytes - decode_cost(dense, 2, counters).num_bytes
    assert more == pytest.approx(2 * 2 * 5 * (8 * (1 - 0.75**7) - 2))  # steps, bytes, weights, experts
    counters = Counters(num_prefills=1, num_prefill_tokens=12)  # of the last of two layers no expert is needed
    more = prefill_cost(facts, 3.5, counters).num_bytes - prefill_cost(dense, 3.5, counters).num_bytes
    assert more == pytest.approx(2 * 5 * (8 * (1 - 0.75**12) - 2) / 2)
    assert decode_cost(facts, 2, Counters()).num_bytes == 0


def test_a_mixtures_facts_are_its_active_weights():
    config = shape_config("sdar-30b-a3b")
    with torch.device("meta"):
        model = FAMILIES["sdar_moe"][1](config)
    facts = model_facts(config, torch.bfloat16)
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert facts.layer_parameters + 2 * facts.head + norms == active_parameters(model)

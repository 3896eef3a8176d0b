"""The continuous engine's decoder: Triton's kernels and plain torch against transformers' own layers."""

import pytest
import torch
from tiny import tiny_model

pytest.importorskip("triton")

from t3d.engine.continuous.decoder import Decoder
from t3d.engine.continuous.pages import PagedCache
from t3d.engine.continuous.prefill import prefill_tiles
from t3d.engine.sharded.ops import ShardedOps
from t3d.kernels.ops import Attention, TorchOps
from t3d.kernels.ops_triton import TritonOps
from t3d.models.attention import as_attention_mask, block_causal_mask

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCES = {torch.float32: 1e-5}
if DEVICE.type == "cuda":
    TOLERANCES[torch.bfloat16] = 2e-2
WIDTHS = {
    "SmolLM2-135M's layer": {
        "family": "block_llama",
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "num_hidden_layers": 1,
    },
    "Llama": {"family": "block_llama", "hidden_size": 72, "num_attention_heads": 6},
    "Qwen2, seven heads a group": {"family": "block_qwen2", "hidden_size": 56, "num_attention_heads": 14},
    "Qwen3": {"family": "sdar", "hidden_size": 96, "num_attention_heads": 4},
    "Qwen3, one key-value head": {"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "Qwen3-MoE": {"family": "sdar_moe", "hidden_size": 64, "num_attention_heads": 4, "mlp_only_layers": [1]},
}


def decoder_logits(model, ops, tokens, half):
    """[S, V] of one prompt, block-causal in blocks of four, as prefill runs it."""
    config, length = model.config, len(tokens)
    cache = PagedCache(config, 3, 1, length, model.dtype, DEVICE)
    cache.point(0, [2])
    cache.send()
    decoder = Decoder(model, cache, ops, length)
    places = torch.from_numpy(cache.places(0, 0, length)).to(DEVICE)
    zero = torch.zeros(1, dtype=torch.int64).numpy()
    tiles = torch.from_numpy(prefill_tiles(zero, zero, zero + length, half)).int().to(DEVICE)
    attention = Attention(tiles, half, 4, config.head_dim**-0.5, num_splits=1, num_pages=1)
    positions = torch.arange(length, dtype=torch.int32, device=DEVICE)
    return decoder.logits(decoder.hidden(tokens, positions, places, attention))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("length", [8, 36], ids=["few-tokens", "many-tokens"])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_decoder_is_transformers_own_model(width, kernels, length, dtype):
    """Eight tokens take the few-token layers, which begin a norm in one kernel and end it in the next."""
    shapes = {"intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1}
    model = tiny_model(dtype=torch.float32, **{**shapes, **WIDTHS[width]}).to(DEVICE)
    tokens = torch.arange(length, device=DEVICE) % 29
    positions = torch.arange(length, device=DEVICE)[None]
    mask = as_attention_mask(block_causal_mask(positions, positions, 4), torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=tokens[None], attention_mask=mask).logits[0].double()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        group = model.config.num_attention_heads // model.config.num_key_value_heads
        half = 4 if length == 8 else 16
        ops = TorchOps() if kernels == "torch" else TritonOps(half, group, model.config.head_dim, DEVICE, 4)
        logits = decoder_logits(model, ops, tokens, half).double()
    assert float((logits - expected).norm() / expected.norm()) < TOLERANCES[dtype]


class SecondOfTwo:
    """In place of a `Sharding`: this process's sums get the parts of a first one."""

    def __init__(self, parts):
        self.parts = parts

    def sum_(self, part):
        part += self.parts.pop(0)


@pytest.mark.parametrize("num_tokens", [8, 36], ids=["few-tokens", "many-tokens"])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_sums_over_processes_are_the_whole_layers(kernels, num_tokens):
    """Attention's output layer, the norm that it begins, the gated layer and the last sum; columns are cut in two."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.randn(shape, generator=generator) / 8).to(DEVICE)

    residual, attended, output = random(num_tokens, 48), random(num_tokens, 64), random(48, 64)
    norm, gate, up, down = random(48), random(40, 48), random(40, 48), random(48, 40)
    after_attention = residual + attended @ output.t()
    wide = after_attention.double()
    normed = (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + 1e-6)).float() * norm
    gated = torch.nn.functional.silu(normed @ gate.t()) * (normed @ up.t())
    expected = after_attention + gated @ down.t()

    sharding = SecondOfTwo([attended[:, :32] @ output[:, :32].t(), gated[:, :20] @ down[:, :20].t()])
    ops = ShardedOps(TorchOps() if kernels == "torch" else TritonOps(4, 2, 16, DEVICE, 4), sharding)
    gate_up = torch.cat([gate[20:], up[20:]])
    part = ops.linear_add_norm_(residual, attended[:, 32:], output[:, 32:].contiguous(), norm, 1e-6, len(gate_up))
    ops.linear_add_(residual, ops.gated_linear(part, gate_up, 1e-6), down[:, 20:].contiguous())
    torch.testing.assert_close(residual, expected, atol=1e-5, rtol=1e-4)
    assert sharding.parts == []

"""RMSNorm, the gated activation and the linear layers for few tokens, against float64."""

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from t3d.kernels.layers_triton import begin_norm, rms_norm, silu_mul
from t3d.kernels.skinny_launch import MAX_TOKENS, Config, choose_config, padded_tokens, pays
from t3d.kernels.skinny_triton import linear_add_, linear_add_norm_, norm_gated_linear, norm_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3}  # the interpreter lacks bfloat16
if DEVICE == "cuda":
    TOLERANCES[torch.bfloat16] = 2e-2
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
EPS = 1e-3
"""Large, so that forgetting it would show."""
SMALL = Config(block_n=16, block_k=16, num_warps=2, num_stages=2)


@pytest.fixture(autouse=True)
def _new_memory_is_poison(monkeypatch):
    """What a kernel forgets to write must not look right because an earlier result lay there."""
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, torch.nan, **options))


def random(*shape, dtype, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def normed(x, weight):
    return functional.rms_norm(x.double(), x.shape[-1:], weight.double(), EPS)


def assert_close(output, expected, dtype):
    assert output.dtype is dtype
    assert output.shape == expected.shape
    assert float((output.double() - expected).norm() / expected.norm()) < TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize("num_tokens, hidden_size", [(1, 16), (5, 96), (3, 2560)])
def test_rms_norm(num_tokens, hidden_size, dtype):
    x = random(num_tokens, 2 * hidden_size, dtype=dtype, scale=0.1)[:, :hidden_size]  # rows of a wider tensor
    weight = random(hidden_size, dtype=dtype, seed=1)
    assert_close(rms_norm(x, weight, EPS), normed(x, weight), dtype)


@DTYPES
@pytest.mark.parametrize("num_tokens, intermediate_size", [(1, 16), (4, 1500)])
def test_silu_mul(num_tokens, intermediate_size, dtype):
    gate_up = random(num_tokens, 2 * intermediate_size, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_close(silu_mul(gate_up), functional.silu(gate) * up, dtype)


@DTYPES
@pytest.mark.parametrize("num_tokens, hidden_size", [(1, 16), (5, 96), (9, 2560)])
def test_begin_norm(num_tokens, hidden_size, dtype):
    x = random(num_tokens, 2 * hidden_size, dtype=dtype, scale=0.1)[:, :hidden_size]
    weight = random(hidden_size, dtype=dtype, seed=1)
    scaled, square_sums = begin_norm(x, weight)
    assert_close(scaled, x.double() * weight.double(), dtype)
    assert square_sums.shape == (1, padded_tokens(num_tokens))
    assert_close(square_sums[:, :num_tokens], x.double().square().sum(dim=-1)[None], torch.float32)


SHAPES = pytest.mark.parametrize(
    "num_tokens, num_inputs, num_outputs, config",
    [
        (1, 32, 1, SMALL),  # one chunk, one output
        (4, 96, 48, SMALL),  # whole chunks
        (5, 70, 37, SMALL),  # neither tokens nor inputs nor outputs fill their blocks
        (17, 40, 20, Config(block_n=32, block_k=16, num_warps=1, num_stages=3)),
        (MAX_TOKENS, 64, 33, None),
        (8, 600, 16, None),
    ],
)


@DTYPES
@SHAPES
def test_norm_linear(num_tokens, num_inputs, num_outputs, config, dtype):
    x, norm_weight = random(num_tokens, num_inputs, dtype=dtype, scale=0.1), random(num_inputs, dtype=dtype, seed=1)
    weight = random(num_outputs, num_inputs, dtype=dtype, seed=2)
    output = norm_linear(begin_norm(x, norm_weight), EPS, weight, config=config)
    assert_close(output, normed(x, norm_weight) @ weight.double().T, dtype)


@DTYPES
@SHAPES
def test_norm_linear_with_a_bias(num_tokens, num_inputs, num_outputs, config, dtype):
    x, norm_weight = random(num_tokens, num_inputs, dtype=dtype, scale=0.1), random(num_inputs, dtype=dtype, seed=1)
    weight, bias = random(num_outputs, num_inputs, dtype=dtype, seed=2), random(num_outputs, dtype=dtype, seed=3)
    output = norm_linear(begin_norm(x, norm_weight), EPS, weight, bias, config)
    assert_close(output, normed(x, norm_weight) @ weight.double().T + bias.double(), dtype)


@DTYPES
@SHAPES
def test_norm_gated_linear(num_tokens, num_inputs, num_outputs, config, dtype):
    x, norm_weight = random(num_tokens, num_inputs, dtype=dtype, scale=0.1), random(num_inputs, dtype=dtype, seed=1)
    weight = random(2 * num_outputs, num_inputs, dtype=dtype, seed=2, scale=num_inputs**-0.5)
    gate, up = (normed(x, norm_weight) @ weight.double().T).chunk(2, dim=-1)
    output = norm_gated_linear(begin_norm(x, norm_weight), EPS, weight, config)
    assert_close(output, functional.silu(gate) * up, dtype)


@DTYPES
@SHAPES
def test_linear_add(num_tokens, num_inputs, num_outputs, config, dtype):
    x, weight = random(num_tokens, num_inputs, dtype=dtype), random(num_outputs, num_inputs, dtype=dtype, seed=1)
    residual = random(num_tokens, num_outputs, dtype=dtype, seed=2, scale=num_inputs**0.5)
    expected = residual.double() + x.double() @ weight.double().T
    assert linear_add_(residual, x, weight, config) is residual
    assert_close(residual, expected, dtype)


@DTYPES
@SHAPES
def test_linear_add_norm_begins_the_norm_of_the_new_residual(num_tokens, num_inputs, num_outputs, config, dtype):
    x, weight = random(num_tokens, num_inputs, dtype=dtype), random(num_outputs, num_inputs, dtype=dtype, seed=1)
    residual = random(num_tokens, num_outputs, dtype=dtype, seed=2, scale=num_inputs**0.5)
    norm_weight = random(num_outputs, dtype=dtype, seed=3)
    expected = linear_add_(residual.clone(), x, weight, config)
    scaled, square_sums = linear_add_norm_(residual, x, weight, norm_weight, config)
    assert torch.equal(residual, expected)
    assert_close(scaled, expected.double() * norm_weight.double(), dtype)
    total = square_sums[:, :num_tokens].double().sum(dim=0)
    assert_close(total.float(), expected.double().square().sum(dim=-1), torch.float32)


@DTYPES
def test_a_chain_of_layers(dtype):
    """The partial sums of 13 programs, the last of them with 8 outputs of its 16, serve the next layer."""
    x, residual = random(5, 96, dtype=dtype), random(5, 200, dtype=dtype, seed=1, scale=10)
    add_weight, weight = random(200, 96, dtype=dtype, seed=2), random(40, 200, dtype=dtype, seed=3)
    norm_weight = random(200, dtype=dtype, seed=4)
    output = norm_linear(linear_add_norm_(residual, x, add_weight, norm_weight, SMALL), EPS, weight, config=SMALL)
    assert_close(output, normed(residual, norm_weight) @ weight.double().T, dtype)


def test_x_may_be_rows_of_a_wider_tensor():
    wide = random(3, 96, dtype=torch.float32)
    x, weight = wide[:, 32:64], random(16, 32, dtype=torch.float32, seed=1)
    residual = torch.zeros(3, 16, device=DEVICE)
    assert_close(linear_add_(residual, x, weight, SMALL), x.double() @ weight.double().T, torch.float32)


def test_nothing_depends_on_the_other_tokens():
    """A token's output has the same bits alone and among others, as long as the padded number of tokens is the same."""
    x, weight = random(8, 64, dtype=torch.float32), random(24, 64, dtype=torch.float32, seed=1)
    ones = torch.ones(64, device=DEVICE)
    together = norm_linear(begin_norm(x, ones), EPS, weight, config=SMALL)
    assert torch.equal(norm_linear(begin_norm(x[2:3], ones), EPS, weight, config=SMALL), together[2:3])


def test_more_tokens_than_fit_are_refused():
    x, weight = torch.zeros(MAX_TOKENS + 1, 32, device=DEVICE), torch.zeros(16, 32, device=DEVICE)
    with pytest.raises(ValueError, match="33 tokens"):
        linear_add_(torch.zeros(MAX_TOKENS + 1, 16, device=DEVICE), x, weight)


@pytest.mark.parametrize("kind", ["norm", "gated", "add"])
@pytest.mark.parametrize("num_outputs, num_inputs", [(2048, 2048), (2048, 6144), (151936, 2048), (49216, 576)])
def test_every_number_of_tokens_has_a_config_that_fits_shared_memory(kind, num_outputs, num_inputs):
    for num_tokens in range(1, MAX_TOKENS + 1):
        for dtype in (torch.bfloat16, torch.float32):
            config = choose_config(kind, num_tokens, num_outputs, num_inputs, dtype)
            rows = config.block_n * (2 if kind == "gated" else 1) + padded_tokens(num_tokens)
            chunk_bytes = rows * config.block_k * config.num_warps * dtype.itemsize
            assert chunk_bytes * (config.num_stages - 1) < 227 * 1024  # the last stage's chunk is in registers


@pytest.mark.parametrize("kind", ["norm", "gated", "add"])
def test_what_pays_fits(kind):
    for num_inputs in (1024, 2048, 6144):
        paying = [pays(kind, num_tokens, 2048, num_inputs) for num_tokens in range(1, 2 * MAX_TOKENS)]
        assert paying == sorted(paying, reverse=True)
        assert 1 <= sum(paying) <= MAX_TOKENS


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_replays_of_a_captured_graph_give_the_same_bits():
    """As the eager launches, and every time."""

    def forward(residual, x):
        for weight in add_weights:
            x = norm_linear(linear_add_norm_(residual, x, weight, norm_weight), EPS, norm_weights)
        return x

    add_weights = random(8, 1024, 1024, dtype=torch.float32, scale=0.05).bfloat16()
    norm_weights = random(1024, 1024, dtype=torch.float32, seed=1, scale=0.05).bfloat16()
    norm_weight, x = random(1024, dtype=torch.bfloat16, seed=2), random(4, 1024, dtype=torch.bfloat16, seed=3)
    residual = torch.zeros(4, 1024, dtype=torch.bfloat16, device=DEVICE)
    expected = forward(residual.clone(), x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(residual.clone(), x)
    for _ in range(20):
        output.zero_()
        graph.replay()
        assert torch.equal(output, expected)

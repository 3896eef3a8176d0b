"""The draw kernel means what `draw_candidates` does: same tokens, probabilities and entropies, same failures."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from t3d.engine.sampling import SamplingParams, draw_candidates
from t3d.kernels import draw_triton
from t3d.kernels.draw_triton import Config, DrawWorkspace, choose_blocks_per_split, draw
from t3d.kernels.noise_triton import GAMMA, exponential_noise
from t3d.noise import draw_keys, gumbel_noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MASK = 5
NUM_DRAWS = 4000 if DEVICE == "cuda" else 80  # the interpreter needs 60 ms for one
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's uint64


def set_configs(monkeypatch, config):
    monkeypatch.setattr(draw_triton, "CONFIGS", {False: config, True: config})


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Small vocabularies in several blocks, of 64 float32 logits each, and programs that do several."""
    set_configs(monkeypatch, Config(vectors=2, lanes=8, num_programs=4))


def keys_of(count, seed=0):
    return draw_keys(torch.full((count,), seed), torch.arange(count), torch.zeros(count, dtype=torch.int64)).to(DEVICE)


def logits_of(count, vocab_size, scale=3.0, seed=0):
    return (torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def temperatures(*values):
    return torch.tensor(values, device=DEVICE)


def reference(logits, temperature, keys):
    count = len(logits)
    params = SamplingParams(
        temperature, torch.zeros(count, dtype=torch.int64, device=DEVICE), torch.ones(count, device=DEVICE), keys
    )
    return draw_candidates(logits, params, MASK)


def assert_same(drawn, expected):
    token_ids, confidence, entropy = drawn
    assert token_ids.dtype is torch.int64
    assert torch.equal(token_ids, expected.token_ids)
    torch.testing.assert_close(confidence, expected.confidence, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(entropy, expected.entropy, rtol=1e-4, atol=2e-5)


def test_blocks_of_the_real_size(monkeypatch):
    monkeypatch.undo()
    vocab_size = 151_936 if DEVICE == "cuda" else 5000
    logits, keys, temperature = logits_of(6, vocab_size), keys_of(6), temperatures(0, 1, 0.3, 0, 2, 1)
    workspace = DrawWorkspace(6, vocab_size, DEVICE)
    for is_sampling in (True, False):
        expected = reference(logits, temperature * is_sampling, keys)
        assert_same(draw(logits, temperature * is_sampling, keys, MASK, is_sampling, workspace), expected)


@pytest.fixture
def most_splits(monkeypatch):
    """As with so few rows that each block has a program of its own."""
    set_configs(monkeypatch, Config(vectors=2, lanes=8, num_programs=1000))


@triton.jit
def _noise_kernel(keys, output, BLOCK: tl.constexpr):
    ids = tl.arange(0, BLOCK)
    counters = tl.load(keys + tl.program_id(0)).to(tl.uint64) + (ids + 1).to(tl.uint64) * GAMMA
    tl.store(output + tl.program_id(0) * BLOCK + ids, exponential_noise(counters))


def test_the_noise_is_that_of_gumbel_noise():
    keys = keys_of(64)
    noise = torch.empty(64, 4096, device=DEVICE)
    _noise_kernel[(64,)](keys, noise, BLOCK=4096)
    expected = torch.exp(-gumbel_noise(keys, 4096).double())
    torch.testing.assert_close(noise.double(), expected, rtol=3e-6, atol=0)
    assert noise.min() < 1e-5  # u near 0, where precision decides draws
    assert noise.max() > 10  # u near 1


def test_many_draws_are_those_of_draw_candidates():
    count = NUM_DRAWS
    logits, keys = logits_of(count, 150), keys_of(count)
    temperature = torch.rand(count, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 2 + 0.05
    assert_same(
        draw(logits, temperature, keys, MASK, True, DrawWorkspace(count, 150, DEVICE)),
        reference(logits, temperature, keys),
    )


@pytest.mark.parametrize("vocab_size", [7, 64, 65, 500])
@pytest.mark.parametrize("is_sampling", [True, False])
def test_any_vocabulary_and_mixed_temperatures(vocab_size, is_sampling):
    logits, keys = logits_of(8, vocab_size), keys_of(8)
    temperature = temperatures(0, 1, 0.3, 0, 2, 1e-6, 1e-30, 1) * is_sampling
    workspace = DrawWorkspace(8, vocab_size, DEVICE)
    assert_same(draw(logits, temperature, keys, MASK, is_sampling, workspace), reference(logits, temperature, keys))


@pytest.mark.usefixtures("most_splits")
@pytest.mark.parametrize("is_sampling", [True, False])
def test_every_block_in_a_program_of_its_own(is_sampling):
    logits, keys = logits_of(6, 500), keys_of(6)
    temperature = temperatures(0, 1, 0.3, 0, 2, 1) * is_sampling
    workspace = DrawWorkspace(6, 500, DEVICE)
    assert_same(draw(logits, temperature, keys, MASK, is_sampling, workspace), reference(logits, temperature, keys))


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])], ids=str)
def test_logits_of_sixteen_bits(dtype):
    logits, keys = logits_of(16, 300).to(dtype), keys_of(16)
    temperature = temperatures(*[0, 1] * 8)
    assert_same(
        draw(logits, temperature, keys, MASK, True, DrawWorkspace(16, 300, DEVICE)),
        reference(logits, temperature, keys),
    )


@pytest.mark.parametrize("is_sampling", [True, False])
def test_ties_go_to_the_lowest_id(is_sampling):
    logits = torch.zeros(2, 300, device=DEVICE)
    logits[0, [134, 70, 107, 299]] = 1.0  # 70 and 134: one lane, two blocks; 107: another lane; 299: another program
    logits[1, MASK] = 9.0
    drawn, _, _ = draw(logits, temperatures(0, 0), keys_of(2), MASK, is_sampling, DrawWorkspace(2, 300, DEVICE))
    assert drawn.tolist() == [70, 0]


@pytest.mark.parametrize("is_sampling", [True, False])
def test_close_logits_are_told_apart(is_sampling):
    """Their softmax weights round to the same number."""
    logits = torch.zeros(1, 300, device=DEVICE)
    logits[0, 200] = 1e-12
    drawn, _, _ = draw(logits, temperatures(0), keys_of(1), MASK, is_sampling, DrawWorkspace(1, 300, DEVICE))
    assert drawn.tolist() == [200]


@pytest.mark.parametrize("is_sampling", [True, False])
def test_minus_infinity_is_probability_zero(is_sampling):
    """Also where a whole program has nothing else."""
    logits, keys = logits_of(3, 300), keys_of(3)
    logits[:, :140] = -torch.inf
    logits[2, :299] = -torch.inf
    temperature = temperatures(0, 1, 1) * is_sampling
    assert_same(
        draw(logits, temperature, keys, MASK, is_sampling, DrawWorkspace(3, 300, DEVICE)),
        reference(logits, temperature, keys),
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about NaN
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_sampling", [True, False])
@pytest.mark.parametrize("places", [[0], [299], [17, 200], list(range(300))])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_confidence(value, places, is_sampling, temperature):
    logits = logits_of(2, 300)
    logits[0, places] = value
    token_ids, confidence, entropy = draw(
        logits, temperatures(temperature, 0) * is_sampling, keys_of(2), MASK, is_sampling, DrawWorkspace(2, 300, DEVICE)
    )
    assert confidence.isfinite().tolist() == [False, True]
    assert entropy.isfinite().tolist() == [False, True]
    assert 0 <= token_ids[0] < 300


@pytest.mark.parametrize("is_sampling", [True, False])
def test_nothing_to_draw_shows_in_the_confidence(is_sampling):
    logits = torch.full((1, 300), -torch.inf, device=DEVICE)
    logits[0, MASK] = 1.0
    temperature = temperatures(1) * is_sampling
    token_ids, confidence, _ = draw(logits, temperature, keys_of(1), MASK, is_sampling, DrawWorkspace(1, 300, DEVICE))
    assert not confidence.isfinite().any()
    assert 0 <= token_ids[0] < 300


def test_the_mask_tokens_logit_does_not_matter():
    logits, keys = logits_of(2, 100), keys_of(2)
    expected = reference(logits, temperatures(0, 1), keys)
    logits[:, MASK] = torch.nan
    assert_same(draw(logits, temperatures(0, 1), keys, MASK, True, DrawWorkspace(2, 100, DEVICE)), expected)


def test_padding_rows_are_left_alone():
    logits, keys, workspace = logits_of(5, 200), keys_of(5), DrawWorkspace(5, 200, DEVICE)
    logits[3:] = torch.nan
    workspace.num_finished[3:] = 77  # a padding row that counted would show
    num_rows = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    drawn = draw(logits, torch.ones(5, device=DEVICE), keys, MASK, True, workspace, num_rows)
    assert_same([part[:3] for part in drawn], reference(logits[:3], torch.ones(3, device=DEVICE), keys[:3]))
    assert workspace.num_finished.tolist() == [0, 0, 0, 77, 77]


def test_a_workspace_serves_again_and_again():
    workspace, temperature = DrawWorkspace(4, 400, DEVICE), torch.ones(2, device=DEVICE)
    for seed in range(3):
        logits, keys = logits_of(2, 400 - 90 * seed, seed=seed), keys_of(2, seed)
        assert_same(draw(logits, temperature, keys, MASK, True, workspace), reference(logits, temperature, keys))


def test_a_workspace_too_small_is_refused():
    workspace = DrawWorkspace(2, 128, DEVICE)
    for shape in ((3, 128), (2, 129)):
        with pytest.raises(ValueError, match="workspace"):
            draw(torch.zeros(shape, device=DEVICE), temperatures(0, 0, 0), keys_of(3), MASK, False, workspace)


def test_draws_are_distributed_as_the_softmax():
    """Chi-square over seven tokens; 22.5 is exceeded by chance once in a thousand."""
    count, chances = NUM_DRAWS, torch.tensor([0.3, 0.25, 0.2, 0.1, 0.08, 0.0, 0.05, 0.02], device=DEVICE)
    logits = (chances.log() * 0.5).expand(count, -1)
    temperature = torch.full((count,), 0.5, device=DEVICE)
    token_ids, confidence, entropy = draw(
        logits, temperature, keys_of(count, 7), MASK, True, DrawWorkspace(count, 8, DEVICE)
    )
    observed, expected = token_ids.bincount(minlength=8), chances * count
    kept = chances > 0
    assert observed[~kept].tolist() == [0]
    assert ((observed - expected)[kept] ** 2 / expected[kept]).sum() < 22.5
    torch.testing.assert_close(confidence, chances[token_ids], rtol=1e-5, atol=0)
    torch.testing.assert_close(entropy, torch.special.entr(chances).sum().expand(count), rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_blocks", [1, 3, 75])
@pytest.mark.parametrize("wanted", [0, 1, 2, 74, 1000])
def test_splits_are_at_most_those_wanted(num_blocks, wanted):
    blocks_per_split = choose_blocks_per_split(num_blocks, wanted)
    num_splits = triton.cdiv(num_blocks, blocks_per_split)
    assert num_splits <= max(wanted, 1)
    assert blocks_per_split == 1 or triton.cdiv(num_blocks, blocks_per_split - 1) > max(
        wanted, 1
    )  # no more are allowed


@pytest.mark.parametrize("is_sampling", [True, False])
def test_without_the_entropy_the_rest_is_the_same(is_sampling):
    """Also where logits are -inf, with nothing to hold z."""
    logits, keys, temperature = logits_of(6, 300), keys_of(6), temperatures(0, 1, 0.3, 1e-6, 2, 1) * is_sampling
    logits[:, 3:140] = -torch.inf
    logits[5, 200] = torch.nan
    workspace = DrawWorkspace(6, 300, DEVICE)
    token_ids, confidence, entropy = draw(logits, temperature, keys, MASK, is_sampling, workspace, needs_entropy=False)
    expected = draw(logits, temperature, keys, MASK, is_sampling, workspace)
    assert torch.equal(token_ids[:5], expected[0][:5])
    torch.testing.assert_close(confidence, expected[1], rtol=1e-6, atol=0, equal_nan=True)
    assert entropy.tolist() == [0.0] * 6


def test_the_last_of_many_blocks_can_win():
    """And the logits before it, however far below, neither win nor weigh."""
    logits = torch.arange(640, dtype=torch.float32, device=DEVICE).expand(2, -1) * 1e4
    drawn = draw(logits, temperatures(0, 1), keys_of(2), MASK, True, DrawWorkspace(2, 640, DEVICE))
    assert [part.tolist() for part in drawn] == [[639, 639], [1, 1], [0, 0]]

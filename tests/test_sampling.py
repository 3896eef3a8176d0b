"""Sampling: what is filtered, what is drawn, and that the draw depends on nothing but its own counters."""

import pytest
import torch

from t3d.engine.sampling import SamplingParams, draw_candidates, filtered_log_probs
from t3d.noise import derive_seeds, draw_keys, gumbel_noise

torch.set_num_threads(1)

MASK = 5
LOGITS = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05, 0.0]]).log().index_fill(1, torch.tensor([MASK]), 3.0)


def params(count=1, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    keys = draw_keys(torch.full((count,), seed), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    return SamplingParams(
        torch.full((count,), temperature), torch.full((count,), top_k), torch.full((count,), top_p), keys
    )


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [0]),
        (2, 1.0, [0, 1]),
        (100, 1.0, [0, 1, 2, 3, 4]),
        (0, 1e-9, [0]),
        (0, 0.39, [0]),
        (0, 0.5, [0, 1]),
        (0, 0.72, [0, 1, 2]),
        (0, 0.96, [0, 1, 2, 3, 4]),
        (3, 0.5, [0, 1]),  # 0.4 / 0.85 = 0.47 is not yet a half
        (2, 0.5, [0]),  # top-p counts after top-k: 0.4 / 0.7 = 0.57
    ],
)
def test_top_k_then_top_p(top_k, top_p, kept):
    probs = filtered_log_probs(LOGITS, params(top_k=top_k, top_p=top_p), MASK)[0].exp()
    assert probs.nonzero()[:, 0].tolist() == kept
    plain = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05, 0.0])[kept]
    torch.testing.assert_close(probs[kept], plain / plain.sum())


def test_ties_at_the_edge_of_top_k_keep_the_lowest_ids():
    probs = filtered_log_probs(torch.zeros(1, 6), params(top_k=2), MASK)[0].exp()
    assert probs.tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_temperature_comes_before_top_p():
    probs = filtered_log_probs(LOGITS, params(temperature=0.5, top_p=0.8), MASK)[0].exp()
    assert probs.nonzero()[:, 0].tolist() == [0, 1]  # .16 and .09 of .285 are .56 and .88


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_tiny_temperatures_are_greedy_not_nan(temperature):
    drawn = draw_candidates(LOGITS, params(temperature=temperature), MASK)
    assert drawn.token_ids.item() == 0
    assert drawn.confidence.item() == pytest.approx(1.0)
    assert drawn.entropy.item() == pytest.approx(0.0, abs=1e-6)


def test_greedy_takes_the_argmax_with_its_plain_probability():
    drawn = draw_candidates(LOGITS, params(temperature=0.0, top_k=1, top_p=0.1), MASK)
    plain = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    assert drawn.token_ids.item() == 0
    assert drawn.confidence.item() == pytest.approx(0.4)
    assert drawn.entropy.item() == pytest.approx(-(plain * plain.log()).sum().item())


def test_a_position_whose_logits_are_not_finite_says_so_and_spoils_no_other():
    logits = LOGITS.repeat(4, 1)
    logits[1, 2] = torch.nan
    logits[2, 0] = torch.inf
    logits[3] = -torch.inf
    drawn = draw_candidates(logits, params(count=4), MASK)
    assert drawn.confidence.isfinite().tolist() == [True, False, False, False]


def chi_square(counts, probs):
    expected = probs * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 3, 1.0), (2.0, 0, 0.9)])
def test_draws_follow_the_filtered_distribution(temperature, top_k, top_p):
    count = 40_000
    setting = params(count, temperature, top_k, top_p, seed=11)
    drawn = draw_candidates(LOGITS.expand(count, -1), setting, MASK)
    probs = filtered_log_probs(LOGITS, params(1, temperature, top_k, top_p), MASK)[0].exp()
    counts = torch.bincount(drawn.token_ids, minlength=len(probs)).float()
    kept = probs > 0
    assert counts[~kept].sum() == 0
    assert chi_square(counts[kept], probs[kept]) < 20  # 4 degrees of freedom: p < 0.001
    torch.testing.assert_close(drawn.confidence, probs[drawn.token_ids])


def test_rare_tokens_keep_their_probability():
    """The tail: 2,000 tokens of 5e-5 each beside one that holds the rest."""
    vocab, rare = 2_001, 5e-5
    logits = torch.full((1, vocab), rare).log()
    logits[0, 0] = torch.tensor(1 - rare * (vocab - 1)).log()
    logits = torch.cat([logits, torch.zeros(1, 1)], dim=1)
    count = 4_000
    tokens = draw_candidates(logits.expand(count, -1), params(count, seed=3), vocab).token_ids
    assert (tokens > 0).float().mean().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("counter", ["seed", "position", "step"])
def test_each_counter_alone_gives_independent_draws(counter):
    count = 20_000
    zeros = torch.zeros(count, dtype=torch.int64)
    counters = {"seed": zeros, "position": zeros, "step": zeros} | {counter: torch.arange(count)}
    setting = params(count)
    setting = SamplingParams(setting.temperature, setting.top_k, setting.top_p, draw_keys(**counters))
    logits = torch.zeros(1, 6).expand(count, -1)
    tokens = draw_candidates(logits, setting, MASK).token_ids
    pairs = torch.bincount(tokens[:-1] * 5 + tokens[1:], minlength=25).float()
    assert chi_square(pairs, torch.full((25,), 1 / 25)) < 52  # 24 degrees of freedom: p < 0.001


def test_a_draw_does_not_depend_on_its_company():
    count = 50
    logits = torch.randn(count, 40, generator=torch.Generator().manual_seed(0))
    mixed = params(count)
    mixed = SamplingParams(
        torch.arange(count) % 3 * 0.5, torch.arange(count) % 4 * 2, 1 - torch.arange(count) % 2 * 0.3, mixed.keys
    )
    together = draw_candidates(logits, mixed, MASK)
    for row in range(count):
        alone = draw_candidates(logits[row : row + 1], mixed.slice(row, row + 1), MASK)
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.confidence[0].item() == pytest.approx(together.confidence[row].item())


def test_noise_is_finite_and_pinned():
    """Recorded draws stay what they are: trajectories can be made again."""
    keys = draw_keys(torch.tensor([0, 7]), torch.tensor([0, 3]), torch.tensor([0, 1]))
    noise = gumbel_noise(keys, 3)
    assert noise.isfinite().all()
    assert keys.tolist() == PINNED_KEYS
    assert derive_seeds(0, 3) == PINNED_SEEDS


def test_derived_seeds_differ_and_are_in_range():
    seeds = derive_seeds(0, 1000) + derive_seeds(1, 1000)
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def _splitmix(*counters):
    """The keys again, in Python's own integers."""

    def mix(value):
        value &= 2**64 - 1
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    gamma = 0x9E3779B97F4A7C15
    key = mix(counters[0] + gamma)
    for counter in counters[1:]:
        key = mix(key + (counter + 1) * gamma)
    return key


PINNED_KEYS = [(key + 2**63) % 2**64 - 2**63 for key in (_splitmix(0, 0, 0), _splitmix(7, 3, 1))]
PINNED_SEEDS = [_splitmix(0, index, 0) >> 1 for index in range(3)]

"""Warming up before a measurement: which requests are decoded, and that the answers do not hang on it."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.evaluation.warming import MOST_REQUESTS, brief_settings, warm_up
from t3d.types import Decoding


class Recorder:
    def __init__(self, backend):
        self.backend = SimpleNamespace(name=backend)
        self.calls = []

    def generate(self, prompts, decodings):
        self.calls.append((prompts, decodings))


@given(st.integers(1, 300), st.integers(1, 600), st.sampled_from([4, 8, 32]))
def test_lengths_are_spread(count, max_new_tokens, block_size):
    decoding = Decoding(block_size=block_size, steps_per_block=1, max_new_tokens=max_new_tokens)
    lengths = [each.max_new_tokens for each in brief_settings(decoding, count)]
    assert len(lengths) == count
    assert lengths == sorted(lengths)
    assert lengths[0] == min(max_new_tokens, 2 * block_size)
    assert lengths[-1] <= min(max_new_tokens, 32 * block_size)
    if count > 1:
        assert lengths[-1] == min(max_new_tokens, 32 * block_size)
        gaps = [after - before for before, after in pairwise(lengths)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("num_prompts", [3, MOST_REQUESTS + 5])
def test_only_what_compiles_is_warmed(num_prompts):
    decoding = Decoding(block_size=4, steps_per_block=2)
    prompts = [[1, 2, number] for number in range(num_prompts)]
    plain, continuous = Recorder("plain"), Recorder("continuous")
    warm_up(plain, prompts, decoding)
    warm_up(continuous, prompts, decoding)
    assert plain.calls == []
    ((warmed, decodings),) = continuous.calls
    assert warmed == prompts[:MOST_REQUESTS]
    assert len(decodings) == len(warmed)

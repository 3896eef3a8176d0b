"""What an engine does once and not for every request is done before the clock starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from t3d.engine import Engine
from t3d.types import Decoding

MOST_REQUESTS = 256
"""As many as an engine decodes together unless told otherwise."""
FEWEST_BLOCKS, MOST_BLOCKS = 2, 32


def warm_up(engine: Engine, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
    """Decode some of the prompts at a setting, so that its kernels are compiled and its graphs captured.

    The responses are cut off one after the other, from 2 blocks up to 32, so that batches of every size occur. Only the
    continuous backend compiles and captures.

    Args:
        prompts: token ids of those that will be decoded.
        decoding: resolved.
    """
    if engine.backend.name != "continuous":
        return
    engine.generate(prompts[:MOST_REQUESTS], brief_settings(decoding, min(len(prompts), MOST_REQUESTS)))


def brief_settings(decoding: Decoding, count: int) -> list[Decoding]:
    """The same setting for each of `count` requests, with lengths spread evenly from 2 blocks to 32 or its own."""
    assert decoding.block_size is not None
    longest = min(decoding.max_new_tokens, MOST_BLOCKS * decoding.block_size)
    shortest = min(longest, FEWEST_BLOCKS * decoding.block_size)
    return [
        replace(decoding, max_new_tokens=shortest + (longest - shortest) * place // max(1, count - 1))
        for place in range(count)
    ]

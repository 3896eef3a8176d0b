"""What the public code's step maps are, if nothing has happened to them.

`scheduler.py` counts the denoising steps of a sequence from 1, over all its blocks, and notes for each token the step
that first revealed it. Every step reveals something, so the steps of a block go on where the block before ended, and
under a rule with a fixed quota each of them reveals that quota. A map that stands at another prompt, that has slipped
over the edge of a block, or that was cut on another grid contradicts this nearly always.

Shapes: steps int [L], one for each response token; P prompt tokens, blocks of B on absolute positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from t3d.interop.upstream.tally import RefusedError
from t3d.types import Decoding

_WITH_QUOTA = ("sequential", "low_confidence_static")
_TAKES_TOO_MANY = ("low_confidence_static", "low_confidence_dynamic")


def per_block(steps: Sequence[int], prompt_length: int, block_size: int) -> list[list[int]]:
    """The steps by block: the first one holds what the prompt leaves of its block, the last may be cut."""
    bounds = [0, *range(block_size - prompt_length % block_size, len(steps), block_size), len(steps)]
    return [list(steps[start:end]) for start, end in pairwise(bounds) if start < end]


def numbered_through(blocks: Sequence[Sequence[int]], block_size: int) -> list[list[int]] | None:
    """Steps that each block counts from 1, numbered over all blocks.

    None if they are not counted so, or if there are too few blocks to be sure of it.
    """
    *whole, _ = blocks
    if len(whole) < 2 or max(map(max, blocks)) > block_size:
        return None
    if not all(set(block) == set(range(1, max(block) + 1)) for block in whole):
        return None
    numbered, before = [], 0
    for block in blocks:
        numbered.append([before + step for step in block])
        before += max(block)
    return numbered


def check_blocks(blocks: Sequence[Sequence[int]], prompt_length: int, decoding: Decoding) -> None:
    """Refuse steps that decoding cannot have given.

    Args:
        blocks: the steps by block; tokens behind the stop token are left out of the last one.
        prompt_length: P.
        decoding: that the rollout asked for, resolved.

    Raises:
        RefusedError: says how they contradict it.
    """
    block_size, quotas = _quotas(decoding)
    before = 0
    for place, block in enumerate(blocks):
        is_last = place == len(blocks) - 1
        num_unknown = block_size - prompt_length % block_size if place == 0 else block_size
        if min(block) <= before:
            raise RefusedError("order")
        taken = max(block) - before
        if taken > len(quotas):
            raise RefusedError("jump")
        revealed = [0] * taken
        for step in block:
            revealed[step - before - 1] += 1
        if not is_last and 0 in revealed:
            raise RefusedError("jump")
        _check_quotas(revealed, quotas, num_unknown, decoding.rule, is_last)
        before = max(block)


def _check_quotas(revealed: Sequence[int], quotas: Sequence[int], num_masked: int, rule: str, is_last: bool) -> None:
    """The steps of one block: `revealed` tokens by each, out of `num_masked` at first, against the rule's quotas."""
    for count, quota in zip(revealed, quotas, strict=False):
        if num_masked < quota and rule in _TAKES_TOO_MANY:
            raise RefusedError("overwritten")
        expected = min(quota, num_masked)
        if rule in _WITH_QUOTA and (count > expected or (count < expected and not is_last)):
            raise RefusedError("quota")
        num_masked -= expected if rule in _WITH_QUOTA else count


def _quotas(decoding: Decoding) -> tuple[int, list[int]]:
    """B, and how many tokens each step of a block reveals at least: B // T, one more in the first B mod T."""
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    base, more = divmod(decoding.block_size, decoding.steps_per_block)
    return decoding.block_size, [base + (step < more) for step in range(decoding.steps_per_block)]

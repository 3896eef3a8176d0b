"""Which tokens of a response are hidden: trajectory -> x_t. The only owner of reveal order.

Pure functions of arrays. Noise is keyed by (seed, epoch, row id), and its distribution may depend on how far the run
is, which the step alone says: packing, the number of GPUs and resuming cannot change it. Shape legend: P prompt tokens,
L response tokens, M hidden tokens, B `block_size`; `progress` goes from 0 at the run's first step to 1 at its last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from t3d.config import CorruptionConfig
from t3d.corruption.records import IntArray, NoisyExample, TrainingRow
from t3d.models.attention import block_index, block_start, first_response_block, padded_length

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

SMALLEST_HIDDEN_PROBABILITY = 1e-3
"""Lower end of t in the NELBO, so that its weight 1/t stays finite."""


def ratio_probabilities(config: CorruptionConfig, progress: float = 0.0) -> FloatArray:
    """float64 [len(ratios)]: probability of each hidden ratio at a moment of the run."""
    final = config.ratio_power if config.final_ratio_power is None else config.final_ratio_power
    power = _between(config.ratio_power, final, progress)
    likeliest = max(config.ratios) if power >= 0 else min(config.ratios)  # 1 in these units: the sum is never 0 or inf
    powers = (np.asarray(config.ratios, dtype=np.float64) / likeliest) ** power
    return powers / powers.sum()


def _between(first: float, last: float, progress: float) -> float:
    """Linear: `first` at progress 0, `last` at 1."""
    return first + (last - first) * progress


def row_generator(seed: int, epoch: int, row_id: str) -> np.random.Generator:
    """A row's own random stream in one epoch."""
    key = hashlib.blake2b(f"{seed}:{epoch}:{row_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def reveal_rank(reveal_step: IntArray, blocks: IntArray) -> IntArray:
    """0-based order in which each token of a response appeared inside its block; ties: lowest position first.

    Steps count through the whole response, so the order also holds on another grid than that of the rollout.

    Args:
        reveal_step: int64 [L].
        blocks: int64 [L] the block of each token, ascending.

    Returns:
        int64 [L].
    """
    order = np.lexsort((np.arange(len(blocks)), reveal_step, blocks))
    ranks = np.empty(len(blocks), dtype=np.int64)
    ranks[order] = np.arange(len(blocks)) - _first_of_block(blocks)[order]
    return ranks


def _first_of_block(blocks: IntArray) -> IntArray:
    """int64 [L]: index of the first token of each token's block."""
    return np.searchsorted(blocks, blocks, side="left")


def _block_sizes(blocks: IntArray) -> IntArray:
    """int64 [L]: how many response tokens each token's block holds."""
    return np.searchsorted(blocks, blocks, side="right") - _first_of_block(blocks)


def hide_by_order(
    ranks: IntArray, blocks: IntArray, rng: np.random.Generator, config: CorruptionConfig, progress: float = 0.0
) -> tuple[BoolArray, FloatArray]:
    """Hide floor(r * n) of the n response tokens of each block, the last revealed ones.

    An example in which that hides nothing (tiny responses at small r) hides one token, of its last block.

    Returns:
        hidden: bool [L].
        weights: float64 [L], all 1.
    """
    ratio = rng.choice(np.asarray(config.ratios), p=ratio_probabilities(config, progress))
    num_hidden = np.floor(ratio * _block_sizes(blocks) + 1e-9).astype(np.int64)  # 0.1 * 10 must not round down to 0
    return _hide_in_order(num_hidden, ranks, blocks, rng, config), np.ones(len(ranks))


def hide_more_and_more(
    ranks: IntArray, blocks: IntArray, rng: np.random.Generator, config: CorruptionConfig, progress: float = 0.0
) -> tuple[BoolArray, FloatArray]:
    """Hide ceil(rho * n) of the n response tokens of each block, the last revealed ones.

    rho is drawn evenly from between a floor, which rises linearly from `rho_min` to `rho_max` over the run, and
    `rho_max`. Source: d3LLM (`d3llm_llada_train.py`: `get_current_mask_ratio`; it too rounds what is visible down).
    Returns as `hide_by_order`.
    """
    rho = config.rho_max - rng.random() * (config.rho_max - _between(config.rho_min, config.rho_max, progress))
    num_hidden = np.ceil(rho * _block_sizes(blocks) - 1e-9).astype(np.int64)
    return _hide_in_order(num_hidden, ranks, blocks, rng, config), np.ones(len(ranks))


def _hide_in_order(
    num_hidden: IntArray, ranks: IntArray, blocks: IntArray, rng: np.random.Generator, config: CorruptionConfig
) -> BoolArray:
    """bool [L]: so many (int64 [L]) of each token's block, as `mask_order` says; at least one of all."""
    if config.mask_order == "random":
        ranks = reveal_rank(rng.permutation(len(ranks)), blocks)
    if not num_hidden.any():
        num_hidden = np.where(blocks == blocks[-1], 1, 0)
    if config.mask_order == "reverse":
        return ranks < num_hidden
    return ranks >= _block_sizes(blocks) - num_hidden


def hide_by_coin(
    ranks: IntArray, blocks: IntArray, rng: np.random.Generator, config: CorruptionConfig, progress: float = 0.0
) -> tuple[BoolArray, FloatArray]:
    """Hide each token with probability 1/2, so that what it leaves visible is hidden as often.

    Source: dParallel (`llada_train.py`: `forward_process_semi_ar`). Returns as `hide_by_order`.
    """
    return rng.random(len(ranks)) < 0.5, np.ones(len(ranks))


def hide_by_chance(
    ranks: IntArray, blocks: IntArray, rng: np.random.Generator, config: CorruptionConfig, progress: float = 0.0
) -> tuple[BoolArray, FloatArray]:
    """Hide each token of a block with the block's own probability t ~ U(0, 1], weight 1 / (t L): the NELBO a token.

    The blocks' t are stratified over the example: one uniform offset and a random order of blocks; each t alone is
    still uniform, but their mean hardly varies, which steadies the loss.
    """
    block_ids, block_of_token = np.unique(blocks, return_inverse=True)
    strata = (rng.permutation(len(block_ids)) + rng.random()) / len(block_ids)
    probability = np.maximum(strata, SMALLEST_HIDDEN_PROBABILITY)[block_of_token]
    hidden = rng.random(len(blocks)) < probability
    return hidden, 1.0 / (probability * len(blocks))


Hider = Callable[[IntArray, IntArray, np.random.Generator, CorruptionConfig, float], tuple[BoolArray, FloatArray]]

HIDERS: dict[str, Hider] = {
    "order": hide_by_order,
    "more_and_more": hide_more_and_more,
    "coin": hide_by_coin,
    "chance": hide_by_chance,
}
"""How an objective may ask for tokens to be hidden."""


def corrupt(
    row: TrainingRow,
    config: CorruptionConfig,
    hider: str,
    *,
    block_size: int,
    mask_token_id: int,
    vocab_size: int,
    rng: np.random.Generator,
    progress: float = 0.0,
    complement: bool = False,
) -> NoisyExample:
    """Hide some of a row's response and lay it out as a clean sequence and a noisy copy.

    Args:
        row: prompt, response and reveal order; without an order, tokens count as revealed left to right.
        config: shares and order.
        hider: a name in `HIDERS`.
        block_size: B.
        mask_token_id: shown in place of hidden tokens, and after the response's end.
        vocab_size: random tokens are drawn from [0, vocab_size) without the mask token.
        rng: the row's own stream (`row_generator`).
        progress: how far the run is, 0 .. 1.
        complement: hide what the same stream would have left visible, and the other way round.
    """
    prompt_length, length = len(row.prompt_ids), len(row.response_ids)
    positions = prompt_length + np.arange(length)
    blocks = block_index(positions, block_size)
    steps = row.reveal_step if row.reveal_step is not None else np.arange(length)
    ranks = reveal_rank(steps, blocks)
    hidden, weights = HIDERS[hider](ranks, blocks, rng, config, progress)
    if complement:
        hidden = ~hidden

    shown = row.response_ids.copy()
    shown[hidden] = mask_token_id
    _show_random_tokens(shown, np.flatnonzero(hidden), config.random_token_share, mask_token_id, vocab_size, rng)

    clean = np.concatenate([row.prompt_ids, row.response_ids])
    start = block_start(first_response_block(prompt_length, block_size), block_size)
    end = padded_length(prompt_length + length, block_size)
    tail = np.full(end - prompt_length - length, mask_token_id, dtype=np.int64)
    return NoisyExample(
        row_id=row.row_id,
        clean_ids=clean,
        noisy_start=start,
        noisy_ids=np.concatenate([row.prompt_ids[start:], shown, tail]),
        loss_offsets=positions[hidden] - start,
        targets=row.response_ids[hidden],
        ranks=ranks[hidden],
        weights=weights[hidden],
        draw_keys=rng.integers(0, 2**63, size=int(hidden.sum())),
    )


def tokens_of_example(prompt_length: int, length: int, block_size: int) -> int:
    """`NoisyExample.num_tokens` of a row with so many prompt and response tokens: no noise changes it."""
    start = block_start(first_response_block(prompt_length, block_size), block_size)
    return prompt_length + length + padded_length(prompt_length + length, block_size) - start


def _show_random_tokens(
    shown: IntArray, hidden: IntArray, share: float, mask_token_id: int, vocab_size: int, rng: np.random.Generator
) -> None:
    """Overwrite `share` of the hidden places (rounded) with uniform tokens other than the mask token, in place."""
    count = round(share * len(hidden))
    if count == 0:
        return
    places = rng.choice(hidden, size=count, replace=False)
    drawn = rng.integers(0, vocab_size - 1, size=count)
    shown[places] = drawn + (drawn >= mask_token_id)

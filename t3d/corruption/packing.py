"""Many noisy examples -> rows of one length, each document invisible to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3d.corruption.hiding import reveal_rank
from t3d.corruption.records import IntArray, LossTokens, NoisyExample, PackedBatch
from t3d.models.attention import CLEAN, NOISY, TILE, block_index

PADDING_DOCUMENT = -1
WIDTH_MULTIPLE = 8
"""Rows are padded to a multiple of this many tokens: attention kernels copy masks whose rows are not aligned."""


def assign_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: which examples share a row of at most `row_tokens` tokens.

    An example longer than `row_tokens` gets a row of its own. Returns indices into `lengths`, a list a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, left in enumerate(room):
            if lengths[index] <= left:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(row_tokens - lengths[index])
    return rows


def pack_in_budget(
    examples: Sequence[NoisyExample],
    *,
    tokens_per_batch: int,
    row_tokens: int | None,
    block_size: int,
    num_examples_in_step: int,
    tiled: bool = False,
    at_least: int = 1,
) -> list[PackedBatch]:
    """Split the examples of one optimizer step into batches of about `tokens_per_batch` tokens and pack each.

    Args:
        examples: this process's share of the step.
        tokens_per_batch: most tokens a batch may hold, padding not counted; at least one example a batch.
        row_tokens: tokens of a row; None takes the longest example of each batch, or the whole batch if `tiled`.
        block_size: B of the training grid.
        num_examples_in_step: the denominator of every mean, over all processes.
        tiled: for attention that costs what is seen: batches are even, rows whole tiles. Otherwise examples of like
            lengths share a batch, whose rows then need little padding: for attention over whole rows.
        at_least: batches; those that are missing hold no example, and add nothing to loss, gradient and metrics.
    """
    ordered = sorted(examples, key=lambda example: (-example.num_tokens, example.row_id))
    batches = divide([example.num_tokens for example in ordered], tokens_per_batch, tiled)
    return [
        pack(
            [ordered[index] for index in members],
            row_tokens=row_tokens,
            block_size=block_size,
            num_examples_in_step=num_examples_in_step,
            tiled=tiled,
        )
        for members in (*batches, *([[]] * (at_least - len(batches))))
    ]


def divide(lengths: Sequence[int], budget: int, tiled: bool) -> list[list[int]]:
    """Which examples share a batch (`pack_in_budget`): indices into `lengths`, which descend; a list a batch."""
    return (spread_evenly if tiled else fill_in_order)(lengths, budget)


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Deal out examples so that all hands hold nearly as many tokens: each goes to the emptiest hand so far.

    Args:
        lengths: positive, best descending.
        hands: how many; none is empty if there are as many examples.

    Returns:
        indices into `lengths`, a list a hand.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [0] * hands
    for index, length in enumerate(lengths):
        emptiest = loads.index(min(loads))
        dealt[emptiest].append(index)
        loads[emptiest] += length
    return dealt


def fill_in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbours share a batch of at most `budget` tokens; a longer one has its own. Indices, a list a batch."""
    batches: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room or not batches:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= length
    return batches


def spread_evenly(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Few batches of at most `budget` tokens and nearly one size: each example goes to the emptiest so far.

    Args:
        lengths: descending.
        budget: raised to the longest.

    Returns:
        indices into `lengths`, a list a batch, none empty.
    """
    if not lengths:
        return []
    budget = max(budget, lengths[0])
    count = -(-sum(lengths) // budget)
    while True:
        batches = deal(lengths, count)
        if all(sum(lengths[index] for index in batch) <= budget for batch in batches):
            return batches
        count += 1


def pack(
    examples: Sequence[NoisyExample],
    *,
    row_tokens: int | None,
    block_size: int,
    num_examples_in_step: int,
    tiled: bool = False,
) -> PackedBatch:
    """Lay examples out in rows, clean sequence then noisy copy, and collect the tokens with loss.

    Args as `pack_in_budget`. Rows are as long as the fullest one; the rest is padding. No examples: one row of it.
    """
    lengths = [example.num_tokens for example in examples]
    rows = assign_rows(lengths, row_tokens or (sum(lengths) if tiled else max(lengths, default=0))) or [[]]
    fullest = max(1, *(sum(lengths[index] for index in row) for row in rows))
    multiple = TILE if tiled else WIDTH_MULTIPLE
    width = -(-fullest // multiple) * multiple
    shape = (len(rows), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    document_ids, copy_ids = np.full(shape, PADDING_DOCUMENT), np.full(shape, CLEAN)
    spans = np.zeros((*shape, 2, 2), np.int32)
    loss_index: list[IntArray] = [np.empty(0, np.int64)] * len(examples)
    for row, members in enumerate(rows):
        column = 0
        for index in members:
            example = examples[index]
            clean = slice(column, column + len(example.clean_ids))
            noisy = slice(clean.stop, clean.stop + len(example.noisy_ids))
            input_ids[row, clean], input_ids[row, noisy] = example.clean_ids, example.noisy_ids
            position_ids[row, clean] = np.arange(len(example.clean_ids))
            position_ids[row, noisy] = example.noisy_start + np.arange(len(example.noisy_ids))
            document_ids[row, column : noisy.stop] = index
            copy_ids[row, noisy] = NOISY
            spans[row, column : noisy.stop] = column + example.spans(block_size)
            loss_index[index] = row * width + noisy.start + example.loss_offsets
            column = noisy.stop
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        document_ids=torch.from_numpy(document_ids),
        copy_ids=torch.from_numpy(copy_ids),
        spans=torch.from_numpy(spans),
        loss_index=_joined(loss_index),
        tokens=_loss_tokens(examples, block_size, num_examples_in_step),
        row_ids=[example.row_id for example in examples],
        num_tokens=sum(lengths),
        num_pairs=int((spans[..., 1] - spans[..., 0]).sum(dtype=np.int64)),
    )


def _loss_tokens(examples: Sequence[NoisyExample], block_size: int, num_examples_in_step: int) -> LossTokens:
    counts = [len(example.targets) for example in examples]
    # a noisy copy starts on a block boundary, so offsets in it tell blocks apart
    turns = [reveal_rank(each.ranks, block_index(each.loss_offsets, block_size)) for each in examples]
    return LossTokens(
        targets=_joined([example.targets for example in examples]),
        ranks=_joined([example.ranks for example in examples]),
        turns=_joined(turns),
        weights=_joined([example.weights for example in examples], np.float32),
        draw_keys=_joined([example.draw_keys for example in examples]),
        example=_joined([np.full(count, index) for index, count in enumerate(counts)]),
        num_examples=len(examples),
        num_examples_in_step=num_examples_in_step,
        block_size=block_size,
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic] = np.int64) -> Tensor:
    """One after another; of this dtype also where there are none."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in parts)]))

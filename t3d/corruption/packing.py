"""Many noisy examples -> rows of one length, each document invisible to the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from t3d.corruption.records import IntArray, LossTokens, NoisyExample, PackedBatch
from t3d.models.attention import CLEAN, NOISY

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
) -> list[PackedBatch]:
    """Split the examples of one optimizer step into batches of about `tokens_per_batch` tokens and pack each.

    Args:
        examples: this process's share of the step.
        tokens_per_batch: most tokens a batch may hold, padding not counted; at least one example a batch.
        row_tokens: tokens of a row; None takes the longest example of each batch.
        block_size: B of the training grid.
        num_examples_in_step: the denominator of every mean, over all processes.
    """
    batches: list[list[NoisyExample]] = []
    room = 0
    for example in sorted(examples, key=lambda example: (-example.num_tokens, example.row_id)):
        if example.num_tokens > room or not batches:
            batches.append([])
            room = tokens_per_batch
        batches[-1].append(example)
        room -= example.num_tokens
    return [
        pack(batch, row_tokens=row_tokens, block_size=block_size, num_examples_in_step=num_examples_in_step)
        for batch in batches
    ]


def pack(
    examples: Sequence[NoisyExample], *, row_tokens: int | None, block_size: int, num_examples_in_step: int
) -> PackedBatch:
    """Lay examples out in rows, clean sequence then noisy copy, and collect the tokens with loss.

    Args as `pack_in_budget`. Rows are as long as the fullest one; the rest is padding.
    """
    lengths = [example.num_tokens for example in examples]
    rows = assign_rows(lengths, row_tokens or max(lengths))
    fullest = max(sum(lengths[index] for index in row) for row in rows)
    width = -(-fullest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    shape = (len(rows), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    document_ids, copy_ids = np.full(shape, PADDING_DOCUMENT), np.full(shape, CLEAN)
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
            loss_index[index] = row * width + noisy.start + example.loss_offsets
            column = noisy.stop
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        document_ids=torch.from_numpy(document_ids),
        copy_ids=torch.from_numpy(copy_ids),
        loss_index=torch.from_numpy(np.concatenate(loss_index)),
        tokens=_loss_tokens(examples, block_size, num_examples_in_step),
        row_ids=[example.row_id for example in examples],
        num_tokens=sum(lengths),
        num_pairs=sum(example.num_pairs(block_size) for example in examples),
    )


def _loss_tokens(examples: Sequence[NoisyExample], block_size: int, num_examples_in_step: int) -> LossTokens:
    counts = [len(example.targets) for example in examples]
    return LossTokens(
        targets=torch.from_numpy(np.concatenate([example.targets for example in examples])),
        ranks=torch.from_numpy(np.concatenate([example.ranks for example in examples])),
        weights=torch.from_numpy(np.concatenate([example.weights for example in examples]).astype(np.float32)),
        draw_keys=torch.from_numpy(np.concatenate([example.draw_keys for example in examples])),
        example=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
        num_examples=len(examples),
        num_examples_in_step=num_examples_in_step,
        block_size=block_size,
    )

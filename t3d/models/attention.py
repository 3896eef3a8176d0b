"""The block grid and who sees whom: the one owner of both.

Shape legend: N rows, Q query tokens, S key tokens, B `block_size`. Blocks lie on absolute positions:
block j = [jB, (j+1)B).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 128
"""Side, in tokens, of the tiles that FlexAttention's kernels skip where nothing in them is seen."""

Positions = TypeVar("Positions", int, Tensor, NDArray[np.int64])

CLEAN, NOISY = 0, 1
"""Values of `copy_ids`: the finished text, and its copy with some tokens hidden."""


def block_index(position: Positions, block_size: int) -> Positions:
    """The block that holds a position (or each of a tensor of positions)."""
    return position // block_size


def first_response_block(prompt_length: int, block_size: int) -> int:
    """The block in which the response starts; the prompt's left-over tokens share it."""
    return prompt_length // block_size


def block_start(block: Positions, block_size: int) -> Positions:
    """First absolute position of a block (or of each of a tensor of blocks)."""
    return block * block_size


def padded_length(length: int, block_size: int) -> int:
    """`length` rounded up to whole blocks."""
    return -(-length // block_size) * block_size


def block_causal_mask(query_positions: Tensor, key_positions: Tensor, block_size: int) -> Tensor:
    """A token sees its own block and all earlier ones.

    Args:
        query_positions: int [N, Q] absolute positions.
        key_positions: int [S] or [N, S].
        block_size: B.

    Returns:
        bool [N, Q, S], True where the query sees the key.
    """
    query_blocks = block_index(query_positions, block_size)[..., :, None]
    key_blocks = block_index(key_positions, block_size)[..., None, :]
    return key_blocks <= query_blocks


def two_copy_mask(position_ids: Tensor, document_ids: Tensor, copy_ids: Tensor, block_size: int) -> Tensor:
    """The pattern of a training forward over clean sequences and their noisy copies, several a row.

    A clean token sees the clean tokens of its document in its own and earlier blocks. A noisy token sees the
    clean tokens of its document in *earlier* blocks and the noisy tokens of its *own* block: exactly what the
    engine shows a block that is being decoded.

    Args:
        position_ids: int [N, S] absolute position of each token in its document.
        document_ids: int [N, S]; padding has an id of its own, so that it sees only padding.
        copy_ids: int [N, S], `CLEAN` or `NOISY`.
        block_size: B.

    Returns:
        bool [N, S, S], True where the row's token (dim 1) sees the column's (dim 2).
    """
    blocks = block_index(position_ids, block_size)
    query_block, key_block = blocks[:, :, None], blocks[:, None, :]
    query_noisy, key_noisy = (copy_ids == NOISY)[:, :, None], (copy_ids == NOISY)[:, None, :]
    same_document = document_ids[:, :, None] == document_ids[:, None, :]
    earlier = key_block < query_block
    same = key_block == query_block
    sees_clean = ~key_noisy & (earlier | (same & ~query_noisy))
    sees_noisy = key_noisy & query_noisy & same
    return same_document & (sees_clean | sees_noisy)


def as_attention_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask [N, Q, S] in the form that transformers' decoders take without touching it: float [N, 1, Q, S].

    Additive, and made once a forward: kernels would convert a bool mask in every layer, and "eager" adds what it gets.
    """
    additive = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, -torch.inf)
    return additive[:, None]

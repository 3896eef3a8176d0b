"""The records between a trajectory and a training forward.

Shape legend: P prompt tokens, L response tokens, W tokens of the noisy copy, M tokens with loss, R rows of a packed
batch, S tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from t3d.models.attention import block_index, block_start
from t3d.types import Trajectory

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A prompt and a finished response to learn from.

    Attributes:
        row_id: names the row in every run; the noise is keyed by it.
        prompt_ids: int64 [P].
        response_ids: int64 [L], stop token included.
        reveal_step: int64 [L], or None for a text that nobody decoded.
    """

    row_id: str
    prompt_ids: IntArray
    response_ids: IntArray
    reveal_step: IntArray | None = None

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory) -> Self:
        """The ids and the reveal order of a trajectory, as they are."""
        return cls(
            row_id=f"{trajectory.prompt_id}/{trajectory.sample}",
            prompt_ids=np.asarray(trajectory.prompt_ids, dtype=np.int64),
            response_ids=np.asarray(trajectory.response_ids, dtype=np.int64),
            reveal_step=np.asarray(trajectory.reveal_step, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True)
class NoisyExample:
    """One row with its noisy copy; where loss falls and how much each token weighs.

    Attributes:
        row_id: of the row it was made from.
        clean_ids: int64 [P + L] the finished sequence.
        noisy_start: absolute position of the noisy copy's first token, a block boundary at or before P.
        noisy_ids: int64 [W] whole blocks from there: left-over prompt tokens, response tokens some of which are
            hidden, and [MASK] after the response's end.
        loss_offsets: int64 [M] places in the noisy copy that carry loss.
        targets: int64 [M] the clean tokens there.
        ranks: int64 [M] 0-based order of reveal inside the token's block.
        weights: float64 [M] what the corruption asks each token to weigh (1, or the NELBO's 1 / (t L)).
        draw_keys: int64 [M] what a draw of another token in that place depends on (`t3d.noise`).
    """

    row_id: str
    clean_ids: IntArray
    noisy_start: int
    noisy_ids: IntArray
    loss_offsets: IntArray
    targets: IntArray
    ranks: IntArray
    weights: NDArray[np.float64]
    draw_keys: IntArray

    @property
    def num_tokens(self) -> int:
        """Tokens that a training forward spends on the example."""
        return len(self.clean_ids) + len(self.noisy_ids)

    def spans(self, block_size: int) -> IntArray:
        """What each token sees in a training forward (`two_copy_mask`), as stretches of clean tokens then noisy copy.

        Returns:
            int64 [P + L + W, 2, 2], as `PackedBatch.spans`, counted from the example's first token.
        """
        length, width = len(self.clean_ids), len(self.noisy_ids)
        spans = np.zeros((length + width, 2, 2), dtype=np.int64)
        clean_blocks = block_index(np.arange(length), block_size)
        spans[:length, 0, 1] = np.minimum(block_start(clean_blocks + 1, block_size), length)
        own_blocks = block_start(block_index(self.noisy_start + np.arange(width), block_size), block_size)
        spans[length:, 0, 1] = own_blocks
        spans[length:, 1, 0] = length + own_blocks - self.noisy_start
        spans[length:, 1, 1] = spans[length:, 1, 0] + block_size
        return spans


@dataclass(slots=True)
class LossTokens:
    """The tokens with loss of one batch: all that an objective may know beside the scores.

    Attributes:
        targets: int64 [M] the clean tokens.
        ranks: int64 [M] 0-based order of reveal inside the token's block.
        turns: int64 [M] 0-based order of reveal among the hidden tokens of the token's block: 0 is the next one.
        weights: float32 [M] the corruption's own weights.
        draw_keys: int64 [M] what a draw of another token in that place depends on.
        example: int64 [M] which example of the batch a token belongs to, 0 .. num_examples - 1.
        num_examples: examples in this batch.
        num_examples_in_step: examples of the whole optimizer step, over all batches and processes: the denominator.
        block_size: of the training grid.
    """

    targets: Tensor
    ranks: Tensor
    turns: Tensor
    weights: Tensor
    draw_keys: Tensor
    example: Tensor
    num_examples: int
    num_examples_in_step: int
    block_size: int


@dataclass(slots=True)
class PackedBatch:
    """Several examples, each a clean sequence and its noisy copy, in rows of one length.

    Attributes:
        input_ids: int64 [R, S].
        position_ids: int64 [R, S] absolute position in the token's document; a noisy token has its twin's.
        document_ids: int64 [R, S]; -1 is padding.
        copy_ids: int64 [R, S], `CLEAN` or `NOISY`.
        spans: int32 [R, S, 2, 2] the stretches of its row that each token sees, each from its first place to the one
            after its last: of clean tokens and of noisy ones; empty ones start where they end. Padding sees nothing.
        loss_index: int64 [M] places with loss in the flattened [R * S].
        tokens: what an objective needs to know of those places.
        row_ids: of the packed examples, in their order.
        num_tokens: real tokens, padding not counted.
        num_pairs: pairs of tokens of which the one sees the other, padding not counted.
        block_mask: the spans as FlexAttention takes them, once they were turned into that.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_ids: Tensor
    copy_ids: Tensor
    spans: Tensor
    loss_index: Tensor
    tokens: LossTokens
    row_ids: list[str]
    num_tokens: int
    num_pairs: int
    block_mask: BlockMask | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device`."""
        return _move(self, device)


def _move(record, device):  # type: ignore[no-untyped-def]
    """A record of tensors, nested records and plain values, with its tensors on `device`."""
    moved = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, LossTokens):
            value = _move(value, device)
        elif isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
        moved[field.name] = value
    return type(record)(**moved)

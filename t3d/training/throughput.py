"""How much arithmetic a training step needs, and what share of the device's peak that is.

Only what the mathematics asks for counts: real tokens (no padding), pairs that see each other, no recomputation. So the
share is the model FLOP utilisation (MFU) on real positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from t3d.corruption import PackedBatch
from t3d.models import BlockDiffusionConfig, feed_forward_of

BF16_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""FLOP/s of dense bf16 products, summed in float32, by the vendor's data sheets (SXM parts), by a part of the name."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one or more batches hold.

    Attributes:
        num_tokens: real tokens that a forward runs over, clean and noisy.
        num_pairs: pairs of tokens of which the one sees the other.
        num_scored: tokens with loss, whose logits are needed.
        num_examples: examples.
    """

    num_tokens: int
    num_pairs: int
    num_scored: int
    num_examples: int


def work_of(batches: Iterable[PackedBatch]) -> Work:
    """The sum over batches."""
    batches = list(batches)
    return Work(
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_pairs=sum(batch.num_pairs for batch in batches),
        num_scored=sum(batch.tokens.targets.shape[0] for batch in batches),
        num_examples=sum(batch.tokens.num_examples for batch in batches),
    )


def forward_flops(config: BlockDiffusionConfig, work: Work) -> float:
    """Floating-point operations of one forward: two for each multiply-add of the products.

    Of a mixture of experts those count that a token is sent to.
    """
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    projections = config.num_hidden_layers * config.hidden_size * (2 * queries + 2 * keys)
    products = 2.0 * (projections + feed_forward_of(config).active) * work.num_tokens
    attention = 4.0 * config.num_hidden_layers * queries * work.num_pairs
    return products + attention + 2.0 * config.vocab_size * config.hidden_size * work.num_scored


def training_flops(config: BlockDiffusionConfig, work: Work, *, has_reference: bool, trains_all: bool) -> float:
    """Of a training step: the student's forward, its backward (twice a forward), the reference's forward.

    Adapters leave out the gradients of the weights that they stand beside: their backward is one forward's worth.
    """
    return forward_flops(config, work) * (1 + (2 if trains_all else 1) + has_reference)


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in BF16_PEAKS.items() if key in name), None)

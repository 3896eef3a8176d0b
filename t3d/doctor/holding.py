"""Bytes that do not depend on a batch: weights, gradients, moments, the frozen model. Pure arithmetic.

Where a formula is another module's, it is taken from there; the others name their source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from t3d.doctor.subject import Weight

MOMENT_BLOCK, SMALLEST_QUANTIZED = 256, 4096
"""torchao's 8-bit AdamW: a scale for so many elements; weights of fewer, or of no whole blocks, are not quantized."""
CODES = 256
"""Float32 values that 8-bit moments stand for: a table with each."""


def weight_bytes(weights: Iterable[Weight], num_shards: int = 1) -> int:
    """Of the weights themselves."""
    return sum(_packed(each) if each.is_packed else each.itemsize * each.part(num_shards) for each in weights)


def _packed(weight: Weight) -> int:
    """NF4, doubly quantised (Dettmers et al. 2023, section 3): a byte of scale for 64 weights, four for 256 bytes."""
    scales = -(-weight.numel // 64)
    return -(-weight.numel // 2) + scales + 4 * -(-scales // 256)


def gradient_bytes(weights: Iterable[Weight], num_shards: int = 1) -> int:
    """Of those that are trained, in the dtype that they are held in."""
    return weight_bytes((each for each in weights if each.is_trained), num_shards)


def moment_bytes(weights: Iterable[Weight], optimizer: str, num_shards: int = 1) -> int:
    """AdamW's two for each trained weight: in its dtype, or a byte an element (`adamw_8bit`)."""
    trained = [each for each in weights if each.is_trained]
    if optimizer != "adamw_8bit":
        return 2 * weight_bytes(trained, num_shards)
    return sum(2 * _moment_8bit(each) for each in trained)


def _moment_8bit(weight: Weight) -> int:
    """torchao.optim's OptimState8bit: codes, a float32 scale a block, the table; else as the weight is held."""
    if weight.numel < SMALLEST_QUANTIZED or weight.numel % MOMENT_BLOCK:
        return weight.itemsize * weight.numel
    return weight.numel + 4 * (weight.numel // MOMENT_BLOCK) + 4 * CODES


def copy_bytes(weights: Iterable[Weight], held_in: int | None, num_shards: int = 1) -> int:
    """A second model: its matrices in `held_in` bytes an element, vectors as the student has them; None: all of it."""
    return sum(
        (held_in if held_in is not None and each.is_matrix else each.itemsize) * each.part(num_shards)
        for each in weights
    )


def trained_weights(weights: Iterable[Weight]) -> list[Weight]:
    """Those with a gradient."""
    return [each for each in weights if each.is_trained]


def largest_layer(weights: Sequence[Weight]) -> int:
    """Weights of the largest decoder layer."""
    sizes: dict[int, int] = {}
    for each in weights:
        if each.layer is not None:
            sizes[each.layer] = sizes.get(each.layer, 0) + each.numel
    return max(sizes.values(), default=0)


def outside_layers(weights: Sequence[Weight]) -> int:
    """Weights of the embedding, the last norm and the LM head, once where they are tied."""
    return sum(each.numel for each in weights if each.layer is None)

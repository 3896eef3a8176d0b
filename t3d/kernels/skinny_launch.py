"""How the few-token linear layers are launched: their cuts, when they pay, and one table of both.

No Triton here. What was measured: one H200, SDAR-1.7B's shapes, bfloat16.
Shape legend: N tokens, K inputs, O outputs, I outputs of a gated layer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Kind = Literal["norm", "gated", "add"]

MAX_TOKENS = 32
"""More tokens than this are cuBLAS's work."""


class Config(NamedTuple):
    """How a layer is cut up.

    Attributes:
        block_n: outputs of a program.
        block_k: inputs of a warp's share; a chunk has `block_k * num_warps`.
        num_warps: of a program, a power of two.
        num_stages: chunks of which the loads are in flight.
    """

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


_CONFIGS = {
    "norm": {
        8: Config(16, 64, 4, 4),
        16: Config(16, 64, 4, 4),
        32: Config(32, 64, 4, 4),
    },
    "head": {
        8: Config(16, 64, 4, 4),
        16: Config(32, 64, 4, 4),
        32: Config(64, 64, 4, 3),
    },
    "gated": {
        8: Config(16, 64, 4, 4),
        16: Config(16, 64, 4, 4),
        32: Config(32, 64, 4, 4),
    },
    "add": {
        8: Config(16, 64, 4, 6),
        16: Config(16, 64, 4, 6),
        32: Config(16, 128, 2, 5),
    },
    "long add": {
        8: Config(16, 128, 4, 5),
        16: Config(16, 128, 4, 5),
        32: Config(16, 128, 4, 5),
    },
}
"""By regime and padded number of tokens."""

_PAYS_UP_TO = {"norm": 16, "head": 8, "gated": 16, "add": 16, "long add": 32}
"""Tokens, by regime."""

_HEAD_OUTPUTS = 65536
_LONG_INPUTS = 4096

_FLOAT32 = Config(16, 32, 4, 3)


def padded_tokens(num_tokens: int) -> int:
    """The tokens that a program computes: 8, 16 or 32.

    Raises:
        ValueError: for more than 32.
    """
    if num_tokens > MAX_TOKENS:
        raise ValueError(f"{num_tokens} tokens, but these layers take at most {MAX_TOKENS}: use torch's linear")
    return max(8, 1 << (num_tokens - 1).bit_length())


def pays(kind: Kind, num_tokens: int, num_outputs: int, num_inputs: int) -> bool:
    """Whether these layers beat cuBLAS and separate kernels.

    Args:
        kind: "norm", "gated" or "add".
        num_tokens: N.
        num_outputs: O, or I where gated.
        num_inputs: K.
    """
    return num_tokens <= _PAYS_UP_TO[_regime(kind, num_outputs, num_inputs)]


def choose_config(kind: Kind, num_tokens: int, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> Config:
    """How to cut up a layer: the table's entry. Arguments: as in `pays`; `dtype` is the weight's."""
    if dtype is torch.float32:  # no tensor cores, more registers
        return _FLOAT32
    return _CONFIGS[_regime(kind, num_outputs, num_inputs)][padded_tokens(num_tokens)]


def _regime(kind: Kind, num_outputs: int, num_inputs: int) -> str:
    if kind == "norm" and num_outputs >= _HEAD_OUTPUTS:
        return "head"
    return "long add" if kind == "add" and num_inputs >= _LONG_INPUTS else kind

"""Models to measure: the shapes of released ones with random weights, since speed does not depend on the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from t3d.errors import RequestError
from t3d.models import (
    FAMILIES,
    BlockDiffusionConfig,
    BlockDiffusionModel,
    BlockLlamaConfig,
    SDARConfig,
    SDARMoeConfig,
    load_config,
    mask_token_id,
)

SDAR: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "mask_token_id": 151_669,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
"""What the released SDAR models share."""
SDAR_1_7B = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}
SDAR_4B = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728}
SDAR_30B_A3B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
"""30.5 billion weights, of which a token passes 3.3."""
SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49_216,
    "mask_token_id": 49_152,
    "max_position_embeddings": 8192,
    "rope_theta": 1e5,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
"""The released model's vocabulary of 49,152, and room for a mask token."""
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 64,
    "mask_token_id": 63,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Decodes in milliseconds on a CPU: to see the command work."""

SHAPES: dict[str, Callable[[], BlockDiffusionConfig]] = {
    "sdar-1.7b": partial(SDARConfig, **SDAR, **SDAR_1_7B),
    "sdar-4b": partial(SDARConfig, **SDAR, **SDAR_4B),
    "sdar-30b-a3b": partial(SDARMoeConfig, **{**SDAR, **SDAR_30B_A3B}),
    "smollm2-135m": partial(BlockLlamaConfig, **SMOLLM2_135M),
    "story-small": partial(load_config, "story-small"),
    "tiny": partial(SDARConfig, **TINY),
}
"""Name on the command line -> the model's config."""


def shape_config(name: str) -> BlockDiffusionConfig:
    """The config of a shape.

    Raises:
        RequestError: no such shape.
    """
    if name not in SHAPES:
        raise RequestError(f"shape {name!r} is unknown: use one of {', '.join(SHAPES)}")
    return SHAPES[name]()


def build_model(
    config: BlockDiffusionConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> BlockDiffusionModel:
    """A model of these shapes, its random weights drawn on the device in the dtype that it runs in."""
    _, model_class = FAMILIES[config.model_type]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(seed)
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(usual)


def random_prompts(config: BlockDiffusionConfig, count: int, length: int, rng: np.random.Generator) -> list[list[int]]:
    """`count` prompts of `length` token ids each, drawn from all but the mask."""
    return random_ids(config, (count, length), rng).tolist()


def random_ids(
    config: BlockDiffusionConfig, size: int | tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 of this size: token ids, drawn from all but the mask."""
    ids = rng.integers(0, config.vocab_size - 1, size=size)
    return ids + (ids >= mask_token_id(config))

"""The Qwen2 family: Qwen2's layers, of Qwen2.5 too: their q, k and v projections have biases."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel


class BlockQwen2Config(BlockDiffusionConfig, Qwen2Config):
    """Qwen2's config, what `BlockDiffusionConfig` adds, and the size of a head as the other families name it."""

    model_type = "block_qwen2"

    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class BlockQwen2ForCausalLM(BlockDiffusionModel, Qwen2ForCausalLM):
    """Qwen2, decoded block by block."""

    config_class = BlockQwen2Config
    config: BlockQwen2Config

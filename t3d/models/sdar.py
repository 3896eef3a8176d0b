"""The SDAR family: Qwen3's layers. What is saved is what the servers that know SDAR load."""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM

from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel


class SDARConfig(BlockDiffusionConfig, Qwen3Config):
    """Qwen3's config, and what `BlockDiffusionConfig` adds."""

    model_type = "sdar"


class SDARForCausalLM(BlockDiffusionModel, Qwen3ForCausalLM):
    """Qwen3, decoded block by block."""

    config_class = SDARConfig
    config: SDARConfig

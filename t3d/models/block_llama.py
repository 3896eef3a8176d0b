"""The Llama family: Llama's layers, which SmolLM2 and many others share; Llama 3's rotary scaling included."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel


class BlockLlamaConfig(BlockDiffusionConfig, LlamaConfig):
    """Llama's config, and what `BlockDiffusionConfig` adds."""

    model_type = "block_llama"


class BlockLlamaForCausalLM(BlockDiffusionModel, LlamaForCausalLM):
    """Llama, decoded block by block."""

    config_class = BlockLlamaConfig
    config: BlockLlamaConfig

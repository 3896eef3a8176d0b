"""Model families over Hugging Face transformers, attention patterns, and scoring."""

from t3d.models import quiet  # noqa: F401  before anything of transformers
from t3d.models.block_llama import BlockLlamaConfig, BlockLlamaForCausalLM
from t3d.models.block_qwen2 import BlockQwen2Config, BlockQwen2ForCausalLM
from t3d.models.building import random_model
from t3d.models.families import FAMILIES
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel, mask_token_id
from t3d.models.loading import (
    BUILT_IN,
    as_device,
    as_dtype,
    device_name,
    has_tokenizer,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    save_model,
    stop_token_ids,
    tokenizer_fingerprint,
)
from t3d.models.sdar import SDARConfig, SDARForCausalLM

__all__ = [
    "BUILT_IN",
    "FAMILIES",
    "BlockDiffusionConfig",
    "BlockDiffusionModel",
    "BlockLlamaConfig",
    "BlockLlamaForCausalLM",
    "BlockQwen2Config",
    "BlockQwen2ForCausalLM",
    "SDARConfig",
    "SDARForCausalLM",
    "as_device",
    "as_dtype",
    "device_name",
    "has_tokenizer",
    "load_config",
    "load_model",
    "load_tokenizer",
    "mask_token_id",
    "model_fingerprint",
    "random_model",
    "resolve_model",
    "save_model",
    "stop_token_ids",
    "tokenizer_fingerprint",
]

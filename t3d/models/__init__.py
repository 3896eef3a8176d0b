"""Model families over Hugging Face transformers, attention patterns, and scoring."""

from t3d.models import quiet  # noqa: F401  before anything of transformers
from t3d.models.block_llama import BlockLlamaConfig, BlockLlamaForCausalLM
from t3d.models.block_qwen2 import BlockQwen2Config, BlockQwen2ForCausalLM
from t3d.models.building import random_model
from t3d.models.counting import active_parameters, feed_forward_of
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
    tokenizer_fingerprint,
)
from t3d.models.saving import save_model
from t3d.models.sdar import SDARConfig, SDARForCausalLM
from t3d.models.sdar_moe import SDARMoeConfig, SDARMoeForCausalLM
from t3d.models.sharding import num_holders, own_config
from t3d.models.stopping import stop_token_ids

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
    "SDARMoeConfig",
    "SDARMoeForCausalLM",
    "active_parameters",
    "as_device",
    "as_dtype",
    "device_name",
    "feed_forward_of",
    "has_tokenizer",
    "load_config",
    "load_model",
    "load_tokenizer",
    "mask_token_id",
    "model_fingerprint",
    "num_holders",
    "own_config",
    "random_model",
    "resolve_model",
    "save_model",
    "stop_token_ids",
    "tokenizer_fingerprint",
]

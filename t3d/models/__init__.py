"""Model families over Hugging Face transformers, attention patterns, and scoring."""

from t3d.models import quiet  # noqa: F401  before anything of transformers
from t3d.models.building import random_model
from t3d.models.loading import (
    BUILT_IN,
    FAMILIES,
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
from t3d.models.sdar import SDARConfig, SDARForCausalLM, mask_token_id

__all__ = [
    "BUILT_IN",
    "FAMILIES",
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

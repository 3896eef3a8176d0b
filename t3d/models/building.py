"""Models with random weights, for training from nothing, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from t3d.errors import RequestError
from t3d.models.sdar import SDARConfig, SDARForCausalLM


def random_model(shapes: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> SDARForCausalLM:
    """A model of the given shapes; vocabulary and special ids come from the tokenizer.

    Args:
        shapes: fields of `SDARConfig`, such as hidden_size and num_hidden_layers.
        tokenizer: must have a mask and an eos token.
        seed: of the weights.

    Raises:
        RequestError: a field that the config does not have or does not accept.
    """
    unknown = sorted(set(shapes) - set(SDARConfig().to_dict()) - {"rope_theta"})
    if unknown:
        raise RequestError(f"model.init: unknown field {unknown[0]}; use those of SDARConfig, such as hidden_size")
    special = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = SDARConfig(**{**special, **shapes})
    except Exception as error:  # transformers validates fields with several exception types
        raise RequestError(f"model.init: {' '.join(str(error).split())}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SDARForCausalLM(config)

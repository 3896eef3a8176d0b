"""Models with random weights, for training from nothing, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from t3d.errors import RequestError
from t3d.models.families import FAMILIES
from t3d.models.family import BlockDiffusionModel

DEFAULT_FAMILY = "sdar"


def random_model(shapes: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> BlockDiffusionModel:
    """A model of the given shapes; vocabulary and special ids come from the tokenizer.

    Args:
        shapes: `model_type`, a family ("sdar" where it is left out); the rest are fields of that family's config, such
            as hidden_size and num_hidden_layers.
        tokenizer: must have a mask and an eos token.
        seed: of the weights.

    Raises:
        RequestError: no such family, or a field that its config does not have or does not accept.
    """
    shapes = dict(shapes)
    family = shapes.pop("model_type", DEFAULT_FAMILY)
    if not isinstance(family, str) or family not in FAMILIES:
        raise RequestError(f"model.init: unknown model_type {family!r}; use one of {', '.join(FAMILIES)}")
    config_class, model_class = FAMILIES[family]
    unknown = sorted(set(shapes) - set(config_class().to_dict()))
    if unknown:
        raise RequestError(
            f"model.init: unknown field {unknown[0]}; use those of {config_class.__name__}, such as hidden_size"
        )
    special = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = config_class(**{**special, **shapes})
    except Exception as error:  # transformers validates fields with several exception types
        raise RequestError(f"model.init: {' '.join(str(error).split())}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config)

"""Autoregressive models, read into the classes of the block-diffusion family that has their layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from t3d.errors import RequestError, message_of
from t3d.models.conversion import gguf_model, gguf_tokenizer
from t3d.models.conversion.gguf_file import GGUFFile
from t3d.models.families import FAMILIES
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel
from t3d.models.loading import check_layers, check_weights, load_tokenizer
from t3d.models.plausible import check_generation_config, check_numbers, check_weights_suffice, room_for_weights

BLOCK_FAMILIES = {"llama": "block_llama", "qwen2": "block_qwen2", "qwen3": "sdar", "qwen3_moe": "sdar_moe"}
"""`model_type` of an autoregressive model -> the family that has its layers."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""How configs call the number of experts."""


@dataclass(frozen=True, slots=True)
class ARModel:
    """An autoregressive model, ready to be changed.

    Attributes:
        model_type: of its own config.
        model: its weights in the classes of the new family; no mask token yet. Its generation config names all stop
            tokens that the model came with.
        tokenizer: its own.
    """

    model_type: str
    model: BlockDiffusionModel
    tokenizer: PreTrainedTokenizerBase


def read_checkpoint(source: str, dtype: torch.dtype) -> ARModel:
    """A folder or a model of the hub, weights in safetensors.

    Raises:
        RequestError: nothing there, or a model that cannot be converted.
    """
    fields = _fields_of(source)
    config = _block_config(fields, source)
    tokenizer = load_tokenizer(source)
    return ARModel(fields["model_type"], _load(source, config, dtype, source), tokenizer)


def read_gguf(source: str, gguf_file: str | None, dtype: torch.dtype) -> ARModel:
    """A GGUF file; or one of a folder, or of the hub, by name.

    Raises:
        RequestError: nothing there, or a model that cannot be converted.
    """
    file = GGUFFile(_gguf_path(source, gguf_file))
    fields = gguf_model.config_fields(file)
    config = _block_config(fields, str(file.path))
    tokenizer = gguf_tokenizer.build_tokenizer(file)
    model = _load(None, config, dtype, str(file.path), gguf_model.state_dict(file, fields, dtype))
    model.generation_config = GenerationConfig(eos_token_id=gguf_tokenizer.stop_ids(file))
    return ARModel(fields["model_type"], model, tokenizer)


def _fields_of(source: str) -> dict[str, Any]:
    """The fields of a folder's or hub id's config.json."""
    is_folder = Path(source).is_dir()
    if is_folder and not (Path(source) / "config.json").exists():
        raise RequestError(f"model {source}: the folder holds no config.json (a GGUF file in it: --gguf-file NAME)")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source)
    except Exception as error:  # of the hub, the disk and JSON
        raise RequestError(
            f"model {source}: config.json cannot be read: {message_of(error)}"
            if is_folder
            else f"model {source}: not a folder, and the hub did not give it (check the spelling and the network, or "
            "download it first)"
        ) from error
    return dict(fields)


def _block_config(fields: Mapping[str, Any], name: str) -> BlockDiffusionConfig:
    """The config of the family that has these layers; `block_size` and `mask_token_id` are still to be set."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise RequestError(f"model {name}: model_type {model_type!r} in config.json is not a name")
    if model_type in FAMILIES:
        raise RequestError(f"model {name}: is a block-diffusion model already ({model_type}); train it as it is")
    if model_type not in BLOCK_FAMILIES and any(fields.get(key) not in (None, 0, 1) for key in EXPERTS):
        raise RequestError(f"model {name}: of mixtures of experts only qwen3_moe can be converted, not {model_type!r}")
    if model_type not in BLOCK_FAMILIES:
        raise RequestError(
            f"model {name}: model_type {model_type!r} cannot be converted (known: {', '.join(BLOCK_FAMILIES)})"
        )
    if fields.get("quantization_config"):
        raise RequestError(f"model {name}: its weights are quantised; convert from the original ones")
    config_class, _ = FAMILIES[BLOCK_FAMILIES[model_type]]
    kept = {key: value for key, value in fields.items() if key not in ("model_type", "architectures", "auto_map")}
    try:
        config = config_class.from_dict(kept)
    except Exception as error:  # transformers validates fields with several exception types
        raise RequestError(f"model {name}: its config is not valid: {message_of(error)}") from error
    check_numbers(config, name)
    check_layers(config, name)
    return config


def _load(
    source: str | None,
    config: BlockDiffusionConfig,
    dtype: torch.dtype,
    name: str,
    state: dict[str, Tensor] | None = None,
) -> BlockDiffusionModel:
    """The weights of `source`, or `state`, in the classes of the block-diffusion family."""
    if source is not None:
        check_generation_config(Path(source), name)
    held = room_for_weights(Path(source)) if source is not None else _number_of_weights(state)
    check_weights_suffice(config, name, held)
    _, model_class = FAMILIES[config.model_type]
    try:
        model, info = model_class.from_pretrained(
            source,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they come back in `info`, and are refused below in one line
        )
    except Exception as error:  # safetensors, OSError, RuntimeError: whatever made the weights unreadable
        raise RequestError(f"model {name}: its weights cannot be read: {message_of(error)}") from error
    check_weights(name, info)
    return model.eval()


def _number_of_weights(state: dict[str, Tensor] | None) -> int:
    return sum(tensor.numel() for tensor in (state or {}).values())


def _gguf_path(source: str, gguf_file: str | None) -> Path:
    if gguf_file is None:
        return Path(source)
    if Path(source).is_dir():
        return Path(source) / gguf_file
    try:
        found = cached_file(source, gguf_file)
    except Exception as error:  # of the hub and the disk
        raise RequestError(f"model {source}: the hub did not give {gguf_file}: {message_of(error)}") from error
    assert found is not None
    return Path(found)

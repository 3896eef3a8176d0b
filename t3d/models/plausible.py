"""Whether a config's numbers can be true, before anything of these sizes is built.

transformers builds what a config says and then looks for the weights: a vocabulary of 10^12 would ask for terabytes,
a billion layers would take a day to be refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from t3d.errors import RequestError
from t3d.models.counting import feed_forward_of
from t3d.models.family import BlockDiffusionConfig

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "block_size",
)
"""Fields that are numbers from 1 on."""
OF_MIXTURES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
"""Likewise, in families that have them; no experts are none."""
LARGEST = 2**31 - 1
MOST_LAYERS = 10_000
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_numbers(config: BlockDiffusionConfig, name: str | Path) -> None:
    """Refuse fields of the wrong kind, which libraries let pass until something breaks.

    Raises:
        RequestError: names the field.
    """
    for field in COUNTS:
        value = getattr(config, field, None)
        if value is None and field in ("num_key_value_heads", "head_dim"):  # follow from the others
            continue
        if not _is_number(value, 1):
            raise RequestError(f"model {name}: {field} must be a number from 1 on, not {value!r}")
    for field in OF_MIXTURES:
        if hasattr(config, field) and not _is_number(getattr(config, field), field != "num_experts"):
            raise RequestError(f"model {name}: {field} must be a number from 1 on, not {getattr(config, field)!r}")
    if config.num_hidden_layers > MOST_LAYERS:
        raise RequestError(f"model {name}: num_hidden_layers must be at most {MOST_LAYERS:,}")
    for field in IDS:
        check_ids(getattr(config, field, None), f"{field} of config.json", name)
    for field, kind in (("rope_parameters", Mapping), ("layer_types", list | tuple), ("mlp_only_layers", list)):
        if not isinstance(getattr(config, field, None), kind | None):
            raise RequestError(f"model {name}: {field} of config.json is of the wrong kind; download it again")


def check_ids(ids: object, what: str, name: str | Path) -> None:
    """Refuse special ids that are no ids: neither null, nor a number from 0 on, nor a list of these.

    Raises:
        RequestError: names them as `what`.
    """
    if ids is not None and not all(_is_number(each, 0) for each in (ids if isinstance(ids, list | tuple) else [ids])):
        raise RequestError(f"model {name}: {what} must be a token id or a list of them, not {ids!r}")


def check_generation_config(folder: Path, name: str | Path) -> None:
    """Refuse a folder's generation_config.json that cannot be read: transformers would go on without its stop tokens.

    Raises:
        RequestError: says so.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"model {name}: {file.name} cannot be read: {error}; download it again") from error
    if not isinstance(fields, dict):
        raise RequestError(f"model {name}: {file.name} holds no mapping of names; download it again")
    check_ids(fields.get("eos_token_id"), f"eos_token_id of {file.name}", name)


def check_weights_suffice(config: BlockDiffusionConfig, name: str | Path, held: int | None) -> None:
    """Refuse a config that describes more weights than there are.

    Args:
        held: weights that are there, at most; None where nobody knows.

    Raises:
        RequestError: says both numbers.
    """
    needed = least_weights(config)
    if held is not None and needed > held:
        raise RequestError(
            f"model {name}: its weights cannot be read: config.json describes {needed:,} or more, and the files have "
            f"room for {held:,}; download or save the model again"
        )


def least_weights(config: BlockDiffusionConfig) -> int:
    """Embedding and layers, norms and biases aside."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads + (config.num_key_value_heads or config.num_attention_heads)
    attention = config.num_hidden_layers * 2 * config.hidden_size * heads * head_dim
    behind = feed_forward_of(config)
    total: int = config.vocab_size * config.hidden_size + attention + behind.shared + behind.held * behind.expert
    return total


def room_for_weights(folder: Path) -> int | None:
    """Weights that a folder's safetensors can hold, none of which takes less than a byte; None if it has none."""
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(file.stat().st_size for file in files if file.is_file()) if files else None


def _is_number(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST

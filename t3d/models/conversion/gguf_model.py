"""Config and weights of a GGUF file in the names and the order that transformers' classes have them in.

The names of metadata and tensors are llama.cpp's (gguf-py's constants.py and tensor_mapping.py).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3d.errors import RequestError
from t3d.models.conversion.gguf_file import GGUFFile

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Of llama.cpp; each is also transformers' model_type."""

WHOLE_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of modules -> transformers'."""
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_WHOLE_TENSOR = re.compile(r"(\w+)\.(weight|bias)")


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The fields of transformers' config.

    Raises:
        RequestError: an architecture, mixture of experts or rotary embedding that cannot be converted; fields missing.
    """
    architecture = file.require("general.architecture")
    if file.get(f"{architecture}.expert_count", 0):
        raise RequestError(f"GGUF file {file.path}: a mixture of experts can be converted from safetensors only")
    if architecture not in ARCHITECTURES:
        raise RequestError(
            f"GGUF file {file.path}: architecture {architecture!r} cannot be converted (known: "
            f"{', '.join(ARCHITECTURES)})"
        )
    _check_rotary_embedding(file, architecture)
    names = set(file.tensor_names)
    biases = {"attention_bias": True} if "blk.0.attn_q.bias" in names and architecture != "qwen2" else {}
    return {
        "model_type": architecture,
        "vocab_size": len(file.texts("tokenizer.ggml.tokens")),
        "hidden_size": file.count(f"{architecture}.embedding_length"),
        "intermediate_size": file.count(f"{architecture}.feed_forward_length"),
        "num_hidden_layers": file.count(f"{architecture}.block_count"),
        "num_attention_heads": file.count(f"{architecture}.attention.head_count"),
        "num_key_value_heads": _key_value_heads(file, architecture),
        "head_dim": _head_dim(file, architecture),
        "max_position_embeddings": file.count(f"{architecture}.context_length"),
        "rms_norm_eps": file.require(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get(f"{architecture}.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
        **biases,
    }


def state_dict(file: GGUFFile, fields: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights under transformers' names.

    Args:
        fields: of `config_fields`.
        dtype: to hold them in.

    Raises:
        RequestError: a tensor that no model of these families has, or of another shape than its heads make.
    """
    state = {}
    for name, values in file.tensors():
        own_name = _name_of(name, file)
        if fields["model_type"] == "llama":
            try:
                values = _in_half_order(name, values, fields)
            except ValueError as error:
                raise RequestError(f"GGUF file {file.path}: tensor {name} has not the shape of its heads") from error
        state[own_name] = torch.from_numpy(np.array(values)).to(dtype)
    return state


def _name_of(name: str, file: GGUFFile) -> str:
    if (layered := _LAYER_TENSOR.fullmatch(name)) and layered[2] in PER_LAYER:
        return f"model.layers.{layered[1]}.{PER_LAYER[layered[2]]}.{layered[3]}"
    if (whole := _WHOLE_TENSOR.fullmatch(name)) and whole[1] in WHOLE_MODEL:
        return f"{WHOLE_MODEL[whole[1]]}.{whole[2]}"
    raise RequestError(f"GGUF file {file.path}: tensor {name} has no place in a model of a known family")


def _in_half_order(name: str, values: NDArray[np.float32], fields: dict[str, Any]) -> NDArray[np.float32]:
    """Undo what llama.cpp does to the queries and keys of Llama: it rotates neighbours, transformers rotates halves.

    Row 2i + j of a head (j in 0, 1) goes back to row j * head_dim / 2 + i.
    """
    module = name.rsplit(".", 2)[-2]
    if module not in ("attn_q", "attn_k"):
        return values
    num_heads = fields["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
    by_pair = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(values.shape)


def _key_value_heads(file: GGUFFile, architecture: str) -> int:
    name = f"{architecture}.attention.head_count"
    return file.count(f"{name}_kv", file.count(name))


def _head_dim(file: GGUFFile, architecture: str) -> int:
    hidden, heads = (file.count(f"{architecture}.{name}") for name in ("embedding_length", "attention.head_count"))
    return file.count(f"{architecture}.attention.key_length", hidden // heads)


def _check_rotary_embedding(file: GGUFFile, architecture: str) -> None:
    """Refuse what cannot be told back from the file: scaled frequencies, and heads that are rotated in part."""
    scaled = file.get(f"{architecture}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensor_names
    if scaled:
        raise RequestError(
            f"GGUF file {file.path}: its rotary embedding is scaled; convert from the safetensors of this model"
        )
    head_dim = _head_dim(file, architecture)
    if file.get(f"{architecture}.rope.dimension_count", head_dim) != head_dim:
        raise RequestError(f"GGUF file {file.path}: only a part of each head is rotated; no known family does that")

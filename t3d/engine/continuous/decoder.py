"""The transformer over a flat list of tokens whose keys and values lie in pages: the model's arithmetic, fewer kernels.

The weights are the model's own. Those that are used together (q, k, v; gate, up) are laid behind each other once, and
the model's parameters become views of that, so that nothing is held twice and training or loading the model still
reaches them.

Shape legend: N tokens, K hidden size, G query heads a key-value head, H key-value heads, D head dimension, I
intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

from t3d.engine.continuous.pages import PagedCache
from t3d.engine.sharded.ops import ShardedOps
from t3d.kernels.ops import Attention, Normed, Ops
from t3d.models import BlockDiffusionModel
from t3d.models.experts import capturable_experts, is_mixture, mixture_forward

LAYERS = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, Qwen3MoeDecoderLayer)
"""What can be decoded here: they differ in norms of query and key heads, biases and experts: see `_layer_weights`."""
MAY_HAVE_BIAS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True, slots=True)
class Gated:
    """What every token passes behind the attention.

    Attributes:
        gate_up: [2 * I, K] gate first.
        down: [K, I].
    """

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's parameters, as the kernels take them.

    Attributes:
        input_norm, post_norm: [K].
        qkv: [(G * H + 2 * H) * D, K].
        qkv_bias: [(G * H + 2 * H) * D], or None.
        q_norm, k_norm: [D], or None.
        output: [K, G * H * D].
        feed_forward: the same for every token, or the model's own router and experts.
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    post_norm: Tensor
    feed_forward: Gated | nn.Module


def why_unsupported(model: BlockDiffusionModel) -> str | None:
    """What keeps a model from being decoded here, or None; the plain engine runs whatever transformers runs."""
    config = model.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if getattr(config, "use_sliding_window", False):
        return "it has sliding-window attention"
    for layer in model.model.layers:
        if type(layer) not in LAYERS:
            return f"its layers are {type(layer).__name__}"
        for name, module in layer.named_modules():
            if name.endswith("_proj") and type(module) is not nn.Linear:
                return f"{name} is not a plain linear layer"
            if name.endswith("_proj") and module.bias is not None and name not in MAY_HAVE_BIAS:
                return f"{name} has a bias"
    return None


class Decoder:
    """A model's layers and head over paged keys and values.

    Args:
        model: one that `why_unsupported` has nothing against.
        cache: where keys and values go.
        ops: the kernels.
        max_positions: of any request.

    Attributes:
        sharding: the processes that hold the model with this one, if any.
    """

    def __init__(self, model: BlockDiffusionModel, cache: PagedCache, ops: Ops, max_positions: int) -> None:
        config = model.config
        self._cache = cache
        self.sharding = model.sharding
        self._ops = ops if self.sharding is None else ShardedOps(ops, self.sharding)
        self._eps = config.rms_norm_eps
        self._experts = capturable_experts(model.dtype, model.device) if self.sharding is None else _shared_experts
        with torch.inference_mode(False):  # the model's parameters have to stay trainable
            self._layers = [_layer_weights(layer) for layer in model.model.layers]
        self._embedding = model.model.embed_tokens.weight
        self._final_norm = model.model.norm.weight
        self._head = model.lm_head.weight
        self._has_part_of_head = len(self._head) < config.vocab_size
        positions = torch.arange(max_positions, device=model.device)[None]
        cos, sin = model.model.rotary_emb(torch.empty((), dtype=torch.float32, device=model.device), positions)
        half = config.head_dim // 2  # the second half repeats the first
        self._cos, self._sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

    def hidden(self, tokens: Tensor, positions: Tensor, places: Tensor, attention: Attention) -> Tensor:
        """Run all layers and store keys and values.

        Args:
            tokens: int64 [N].
            positions: int32 [N].
            places: int32 [N] page * PAGE_SIZE + offset.
            attention: who attends to what.

        Returns:
            float [N, K], before the final norm.
        """
        return self._run(tokens, positions, places, attention, only_store=False)

    def store(self, tokens: Tensor, positions: Tensor, places: Tensor, attention: Attention) -> None:
        """`hidden` for tokens that only later ones need: stops at the last layer's keys and values."""
        self._run(tokens, positions, places, attention, only_store=True)

    def _run(self, tokens: Tensor, positions: Tensor, places: Tensor, attention: Attention, only_store: bool) -> Tensor:
        ops, eps = self._ops, self._eps
        residual = self._embedding[tokens]
        normed = ops.norm(residual, self._layers[0].input_norm, eps, len(self._layers[0].qkv))
        for index, layer in enumerate(self._layers):
            is_last = index == len(self._layers) - 1
            keys, values = self._cache.keys[index], self._cache.values[index]
            qkv = ops.linear(normed, layer.qkv, eps, layer.qkv_bias)
            query = ops.rope_and_store(
                qkv, layer.q_norm, layer.k_norm, eps, self._cos, self._sin, positions, places, keys, values
            )
            if only_store and is_last:
                break
            attended = ops.attend(query, keys, values, self._cache.table, attention)
            normed = self._feed_forward(residual, attended, layer, None if is_last else self._layers[index + 1])
        return residual

    def _feed_forward(
        self, residual: Tensor, attended: Tensor, layer: LayerWeights, following: LayerWeights | None
    ) -> Normed:
        """All of a layer behind its attention, into the residual [N, K]; then the following layer's first norm."""
        ops, eps, parts = self._ops, self._eps, layer.feed_forward
        if not isinstance(parts, Gated):
            ops.linear_add_(residual, attended, layer.output)
            residual += mixture_forward(parts, ops.rms_norm(residual, layer.post_norm, eps), self._experts)
            return ops.norm(residual, following.input_norm, eps, len(following.qkv)) if following else None
        normed = ops.linear_add_norm_(residual, attended, layer.output, layer.post_norm, eps, len(parts.gate_up))
        gated = ops.gated_linear(normed, parts.gate_up, eps)
        if following is None:
            ops.linear_add_(residual, gated, parts.down)
            return None
        return ops.linear_add_norm_(residual, gated, parts.down, following.input_norm, eps, len(following.qkv))

    def logits(self, hidden: Tensor) -> Tensor:
        """The final norm and the LM head: float [M, K] -> [M, vocabulary]."""
        normed = self._ops.norm(hidden, self._final_norm, self._eps, len(self._head))
        logits = self._ops.linear(normed, self._head, self._eps)
        return self.sharding.gathered(logits) if self.sharding and self._has_part_of_head else logits


def addresses(model: BlockDiffusionModel) -> tuple[int, ...]:
    """Where the weights lie: a model that was moved or converted needs a new core, one that was trained does not."""
    return tuple(parameter.data_ptr() for parameter in model.parameters())


def _layer_weights(layer: Any) -> LayerWeights:
    """The parameters of one of `LAYERS`."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    has_bias, has_norms = attention.q_proj.bias is not None, hasattr(attention, "q_norm")
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        qkv=_joined([projection.weight for projection in projections]),
        qkv_bias=_joined([projection.bias for projection in projections]) if has_bias else None,
        q_norm=attention.q_norm.weight if has_norms else None,
        k_norm=attention.k_norm.weight if has_norms else None,
        output=attention.o_proj.weight,
        post_norm=layer.post_attention_layernorm.weight,
        feed_forward=mlp if is_mixture(mlp) else _gated(mlp),
    )


def _gated(mlp: Any) -> Gated:
    return Gated(gate_up=_joined([mlp.gate_proj.weight, mlp.up_proj.weight]), down=mlp.down_proj.weight)


def _shared_experts(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """A module of experts, of each of which every process holds some rows: transformers adds their outputs up."""
    output: Tensor = experts(hidden, chosen, weights)
    return output


def _joined(parameters: list[nn.Parameter]) -> Tensor:
    """Parameters behind each other as one tensor, of which they become views (they stay so when joined again)."""
    weights = [parameter.data for parameter in parameters]
    rows = [len(weight) for weight in weights]
    if _lie_behind_each_other(weights):
        return weights[0].as_strided((sum(rows), *weights[0].shape[1:]), weights[0].stride())
    joined = torch.cat(weights)
    for parameter, part in zip(parameters, joined.split(rows), strict=True):
        parameter.data = part
    return joined


def _lie_behind_each_other(weights: list[Tensor]) -> bool:
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    same_storage = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    return same_storage and all(end == weight.data_ptr() for end, weight in zip(ends, weights[1:], strict=False))

"""Frozen weights in four bits (QLoRA, Dettmers et al. 2023), by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t3d.errors import RequestError
from t3d.models import BlockDiffusionModel, feed_forward_of


def quantize_layers(model: BlockDiffusionModel, compute_dtype: torch.dtype, device: torch.device) -> None:
    """Hold the linear layers of the decoder in NF4, doubly quantised; embeddings, norms and the LM head stay.

    In place, and one layer after another, so that the device never holds the unrounded layers together.

    Args:
        model: on the host or on `device`.
        compute_dtype: what a layer's weight is unpacked to for its product.
        device: where the packed weights go.

    Raises:
        RequestError: a mixture of experts, nearly all of whose weights are in no linear layer.
    """
    if feed_forward_of(model.config).held:
        raise RequestError(
            "model.quantize: does not reach the experts of a mixture, which are most of it; leave it out"
        )
    decoder = model.model
    for name in [name for name, layer in decoder.named_modules() if type(layer) is nn.Linear]:
        layer = decoder.get_submodule(name)
        decoder.set_submodule(name, _four_bit(layer, compute_dtype, device))
    model.is_loaded_in_4bit = True  # peft goes by this


def _four_bit(layer: nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> nn.Module:
    import bitsandbytes

    packed = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4", device="meta"
    )
    packed.weight = bitsandbytes.nn.Params4bit(layer.weight.detach(), quant_type="nf4", module=packed)
    packed.bias = layer.bias
    packed.support_avx512bf16_for_cpu = False  # it would pack the weight anew, past training, in its first eval
    return packed.to(device)


def is_quantized(layer: nn.Module) -> bool:
    """Whether `quantize_layers` made this layer."""
    return _packing(layer) is not None


def unpacked_weight(layer: nn.Linear) -> Tensor:
    """The weight [out, in] that a linear layer multiplies by, quantised or not, in the dtype before quantisation."""
    packing = _packing(layer)
    if packing is None:
        return layer.weight.detach()
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(layer.weight.detach(), packing)


def _packing(layer: nn.Module) -> Any:
    """What bitsandbytes needs to unpack the layer's weight; None for a plain one."""
    return getattr(getattr(layer, "weight", None), "quant_state", None)

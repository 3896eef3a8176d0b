"""Low-rank adapters (LoRA, DoRA) beside frozen weights, by peft; and the plain model that they amount to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from t3d.config import AdapterConfig, Recipe
from t3d.errors import RequestError, WorkError
from t3d.models import BlockDiffusionModel, save_model
from t3d.training.copying import copy_model
from t3d.training.precision import compute_dtype, trained_dtype
from t3d.training.quantization import is_quantized, quantize_layers, unpacked_weight
from t3d.training.student import Student, placing

NAME = "default"
"""Of the one adapter that each layer has, as peft calls it unasked."""
FOLDER = "adapter"
"""Beside the folder of the merged model: the adapter alone, as peft stores it."""


class AdaptedStudent(Student):
    """A model whose own weights are frozen, with adapters that are trained.

    `model` runs with its adapters; `exported` and `save` give a plain one, the adapters merged into the weights that
    they were trained beside. For four-bit weights these are the rounded ones: that is the model whose loss was measured
    and whose rounding the adapters have learned to make up for.

    Args:
        adapted: peft's view of the model.
    """

    def __init__(self, adapted: PeftModel) -> None:
        super().__init__(adapted.get_base_model())
        self._adapted = adapted

    def exported(
        self, dtype: torch.dtype | None = None, device: str | torch.device | None = None
    ) -> BlockDiffusionModel:
        """As the base class; layers are merged one after another, in float32 at least, and then rounded to `dtype`.

        None is float32: bfloat16 would round away again most of what was learned.
        """
        dtype = dtype or _at_least_float32(self.model.dtype)
        place = placing(dtype, device)
        exported = copy_model(self.model, place, _plain_layers(self.model, place))
        for mark in ("peft_config", "is_loaded_in_4bit"):
            exported.__dict__.pop(mark, None)
        exported.set_attn_implementation("sdpa")
        return exported

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the merged model, in float32, and beside its folder the adapter alone: `adapter`, in peft's format.

        The merged model is made in the host's memory: the device may have room for one only.

        Raises:
            WorkError: the disk refuses.
        """
        save_model(self.exported(device="cpu"), folder, tokenizer, with_checksums=True)
        try:
            self._adapted.save_pretrained(folder.parent / FOLDER, save_embedding_layers=False)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise WorkError(f"adapter {folder.parent / FOLDER}: cannot be written: {reason}") from error


def adapted_student(model: BlockDiffusionModel, recipe: Recipe, device: torch.device) -> AdaptedStudent:
    """A model with the recipe's adapters beside its frozen weights, in training mode on the device.

    Raises:
        RequestError: adapters for layers that the model does not have.
    """
    assert recipe.model.adapter is not None
    if recipe.model.quantize is not None:
        quantize_layers(model, compute_dtype(recipe), device)
    adapted = add_adapters(model, recipe.model.adapter, trained_dtype(recipe), recipe.seed)
    if compute_dtype(recipe) == torch.bfloat16 and recipe.model.adapter.type == "lora":
        _leave_inputs_to_autocast(model)
    adapted.to(device).train()
    return AdaptedStudent(adapted)


def add_adapters(model: BlockDiffusionModel, adapter: AdapterConfig, held_in: torch.dtype, seed: int) -> PeftModel:
    """Put adapters into the model, in place; all else is frozen. They change nothing yet.

    Args:
        model: on any device; adapters go where their layer is.
        adapter: kind, size and places.
        held_in: dtype of the adapters, whatever the model's.
        seed: of their random half.

    Raises:
        RequestError: adapters for layers that the model does not have.
    """
    targets = _targets(model, adapter.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=2 * adapter.rank if adapter.alpha is None else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.type == "dora",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws on the host
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(held_in)
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_magnitude_vector:  # peft rounds it as the weight is held
            magnitude = layer.lora_magnitude_vector[NAME].weight
            magnitude.data = _row_norms(unpacked_weight(layer.get_base_layer()).to(held_in))
    return adapted


def _leave_inputs_to_autocast(model: BlockDiffusionModel) -> None:
    """Hand adapters a layer's bfloat16 input as it is: autocast, under which the learner runs, rounds their weights.

    peft would turn it into their float32 first, and autocast back into bfloat16: a copy for every adapter, kept for the
    backward pass, where those of q, k and v (and of gate and up) can share one.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False


def _targets(model: BlockDiffusionModel, asked: tuple[str, ...] | None) -> list[str]:
    """Names of linear layers of the decoder: those asked for, or all."""
    linears = [name for name, layer in model.model.named_modules() if isinstance(layer, nn.Linear)]
    known = sorted({linear.rpartition(".")[2] for linear in linears})
    if asked is None:
        return known
    unknown = [name for name in asked if not any(f".{linear}".endswith(f".{name}") for linear in linears)]
    if unknown or not asked:
        what = f"no linear layer is called {', '.join(unknown)}" if unknown else "names none"
        raise RequestError(f"model.adapter.targets: {what}; the model has {', '.join(known)}")
    return list(asked)


def _plain_layers(model: BlockDiffusionModel, place: Callable[[Tensor], Tensor]) -> dict[nn.Module, nn.Module]:
    """Layer that is adapted or quantised -> the plain one that does the same, its weight put where `place` says."""
    plain: dict[nn.Module, nn.Module] = {}
    inner: set[nn.Module] = set()
    for layer in model.modules():  # an adapted layer comes before the one inside it
        if isinstance(layer, LoraLayer):
            inner.add(layer.get_base_layer())
            plain[layer] = _plain_linear(place(_merged_weight(layer)), layer.get_base_layer())
        elif is_quantized(layer) and layer not in inner:
            assert isinstance(layer, nn.Linear)
            plain[layer] = _plain_linear(place(unpacked_weight(layer)), layer)
    return plain


def _merged_weight(layer: LoraLayer) -> Tensor:
    """The one weight [out, in] that does what a layer and its adapter do.

    LoRA: W' = W + s B A (Hu et al. 2021, section 4.1). DoRA: m W' / |W'|, each row by its norm (Liu et al. 2024,
    equation 5). In float32 at least.
    """
    weight = unpacked_weight(layer.get_base_layer())
    weight = weight.to(_at_least_float32(weight.dtype))
    down, up = (factor[NAME].weight.detach().to(weight.dtype) for factor in (layer.lora_A, layer.lora_B))
    weight = weight + layer.scaling[NAME] * (up @ down)
    if NAME not in layer.lora_magnitude_vector:
        return weight
    magnitude = layer.lora_magnitude_vector[NAME].weight.detach().to(weight.dtype)
    return (magnitude / _row_norms(weight))[:, None] * weight


def _plain_linear(weight: Tensor, like: nn.Linear) -> nn.Linear:
    """A linear layer of this weight [out, in] and a copy of the other layer's bias."""
    has_bias = like.bias is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
    linear.weight = nn.Parameter(weight)
    if has_bias:
        linear.bias = nn.Parameter(like.bias.detach().to(weight, copy=True))
    return linear


def _row_norms(weight: Tensor) -> Tensor:
    return torch.linalg.norm(weight, dim=1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

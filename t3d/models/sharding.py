"""A model of which each of several processes holds a part, by transformers' own plan (tensor parallelism).

Every process holds some heads of each layer, as many rows of its MLP, and all of embedding and norms. Two sums over the
processes a layer make the residual stream the same everywhere (Megatron-LM, arXiv:1909.08053, section 3).
"""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from t3d.errors import RequestError

if TYPE_CHECKING:
    from t3d.models.family import BlockDiffusionModel

DEALT_OUT = ("num_key_value_heads", "num_attention_heads", "intermediate_size", "moe_intermediate_size")
"""Fields of a config of which each process has an equal share."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """The processes that hold a model together, of which this is one, and what these can do.

    Attributes:
        mesh: of these processes, with one dimension.
        fingerprint: of the whole model (`t3d.models.model_fingerprint`), which no process could tell alone.
    """

    mesh: DeviceMesh
    fingerprint: str

    @property
    def size(self) -> int:
        """How many processes."""
        return self.mesh.size()

    def sum_(self, part: Tensor) -> None:
        """Replace each process's tensor, of one shape, by the sum of them."""
        dist.all_reduce(part, group=self.mesh.get_group())

    def gathered(self, part: Tensor) -> Tensor:
        """[M, O] of each process -> [M, O * size], the columns of the first process first."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part, group=self.mesh.get_group())
        return torch.cat(parts, dim=1)

    def take_first_(self, tensor: Tensor) -> None:
        """Replace each process's tensor by that of the first."""
        dist.broadcast(tensor, group_src=0, group=self.mesh.get_group())

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        found = torch.tensor(number, device=self.mesh.device_type)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.mesh.get_group())
        return int(found)


def check_shares(config: PretrainedConfig, size: int, name: object) -> None:
    """Refuse a model that cannot be dealt out to `size` processes.

    Raises:
        RequestError: heads or widths that it does not divide, a family without a plan, quantized weights.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise RequestError(f"model {name}: quantized weights cannot be shared out; use it without --tensor-parallel")
    if not config.base_model_tp_plan:
        raise RequestError(f"model {name}: transformers has no plan to share out models of type {config.model_type}")
    for field in DEALT_OUT:
        number = getattr(config, field, None)
        if number is not None and number % size:
            raise RequestError(
                f"model {name}: {field} is {number}, which {size} processes cannot share: "
                "choose a --tensor-parallel that divides it"
            )


def share_options(config: PretrainedConfig, model_class: type[BlockDiffusionModel], mesh: DeviceMesh) -> dict[str, Any]:
    """The arguments of `from_pretrained` that let each process read its own part only."""
    plan: str | dict[str, str] = "auto"
    if config.tie_word_embeddings or config.vocab_size % mesh.size():
        # The plan without the head; and without the embedding, which a tied head would take with it: the engines look
        # tokens up themselves.
        styles = {pattern: style for pattern, style in config.base_model_tp_plan.items() if pattern != "embed_tokens"}
        plan = {f"{model_class.base_model_prefix}.{pattern}": style for pattern, style in styles.items()}
        # a plan covers several kinds of layers, of which a model may lack some
        warnings.filterwarnings("ignore", message="Layer pattern .* does not match any parameters")
    return {"distributed_config": DistributedConfig(tp_size=mesh.size(), tp_plan=plan), "device_mesh": mesh}


def hold_own_part(model: BlockDiffusionModel, mesh: DeviceMesh, fingerprint: str) -> None:
    """Make a model that was loaded with `share_options` fit for the engines: its linear layers' weights become plain
    tensors, this process's part, as kernels take them. It can be decoded with, and not be saved any more.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                if isinstance(weight, DTensor):
                    part = weight.to_local().detach().contiguous()
                    setattr(module, name, nn.Parameter(part, weight.requires_grad))
    model.sharding = Sharding(mesh, fingerprint)


def whole(weight: Tensor) -> Tensor:
    """A weight as a plain tensor; where it is dealt out, all processes must ask."""
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def num_holders(model: BlockDiffusionModel) -> int:
    """How many processes, each with its own device, hold a model together."""
    return 1 if model.sharding is None else model.sharding.size


def own_config(model: BlockDiffusionModel) -> PretrainedConfig:
    """The model's config, with the heads and widths of this process's part of it."""
    if model.sharding is None:
        return model.config
    config = copy(model.config)
    for field in DEALT_OUT:
        if (number := getattr(config, field, None)) is not None:
            setattr(config, field, number // model.sharding.size)
    return config

"""Models and weights copied without a detour through memory that is not there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from t3d.models import BlockDiffusionModel
from t3d.training.parallel.tensors import copy_tensor


def copy_model(
    model: BlockDiffusionModel,
    convert: Callable[[Tensor], Tensor],
    replaced: Mapping[nn.Module, nn.Module] | None = None,
) -> BlockDiffusionModel:
    """A copy in eval mode whose weights are what `convert` makes of the model's, tied ones once.

    At no time is there more than the model and its converted copy. Buffers are copied as they are: the rotary
    frequencies would not survive a rounding to bfloat16.

    Args:
        model: is left as it is.
        convert: makes of a weight a tensor of its own memory, of any dtype and device.
        replaced: parts of the model -> what stands for them in the copy.
    """
    replaced = replaced or {}
    taken_out = {id(weight) for part in replaced for weight in part.parameters()}
    memo: dict[int, Any] = {id(part): twin for part, twin in replaced.items()}
    for weight in model.parameters():
        if id(weight) not in taken_out:
            memo[id(weight)] = nn.Parameter(convert(weight.detach()))
    return copy.deepcopy(model, memo).eval()


def copy_into(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Overwrite tensors by those of the same names, whole ones or, where both are sharded alike, part by part.

    Raises:
        ValueError: other names or shapes.
    """
    if {name: tensor.shape for name, tensor in other.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError("it belongs to a model of other shapes")
    for name, tensor in other.items():
        copy_tensor(own[name], tensor)

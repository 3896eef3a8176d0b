"""Tensors of which each process holds a part: rows of a weight, dealt out by torch's DTensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from t3d.models.sharding import whole as whole


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory and without gradients; a plain one is all its own."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, dealt out as `like` is; as it is if `like` is plain or it is dealt out."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def deal_out(own: DTensor, tensor: Tensor | None) -> None:
    """Overwrite a sharded tensor by one that the main process has whole, of any dtype and device; all must ask.

    Args:
        own: lies where its processes compute.
        tensor: of its shape; None in all processes but the main one.
    """
    part = local_part(own)
    room = torch.empty(own.shape, dtype=part.dtype, device=part.device)
    if tensor is not None:
        room.copy_(tensor.detach())
    part.copy_(distribute_tensor(room, own.device_mesh, own.placements).to_local())


@torch.no_grad()
def copy_tensor(own: Tensor, other: Tensor) -> None:
    """Overwrite a tensor by one of its shape, of any dtype and device; no process asks another for anything."""
    local_part(own).copy_(local_part(sharded_like(other, own)))

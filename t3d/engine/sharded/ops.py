"""A decoder's steps where each process holds some heads of every layer and some rows of its MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.kernels.ops import Normed, Ops
from t3d.models.sharding import Sharding


class ShardedOps:
    """What the methods mean: `t3d.kernels.ops.Ops`; linear layers that end at the residual are summed over processes.

    Args:
        ops: of this process's part.
        sharding: the processes.
    """

    def __init__(self, ops: Ops, sharding: Sharding) -> None:
        self._ops = ops
        self._sharding = sharding
        self.rms_norm, self.norm = ops.rms_norm, ops.norm
        self.linear, self.gated_linear = ops.linear, ops.gated_linear
        self.rope_and_store, self.attend = ops.rope_and_store, ops.attend

    def linear_add_norm_(
        self, residual: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float, num_outputs: int
    ) -> Normed:
        """See `Ops`."""
        self.linear_add_(residual, x, weight)
        return self.norm(residual, norm_weight, eps, num_outputs)

    def linear_add_(self, residual: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `Ops`; weight: this process's columns, x: theirs."""
        part = torch.zeros_like(residual)
        self._ops.linear_add_(part, x, weight)
        self._sharding.sum_(part)
        residual += part

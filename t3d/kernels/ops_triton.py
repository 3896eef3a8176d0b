"""`t3d.kernels.ops.Ops` on a GPU: fused kernels where memory is the bound, cuBLAS where arithmetic is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from t3d.kernels.attention_launch import AttentionWorkspace
from t3d.kernels.attention_triton import paged_attention
from t3d.kernels.layers_triton import Normed, begin_norm, rms_norm, silu_mul
from t3d.kernels.ops import Attention
from t3d.kernels.rope_triton import rope_and_store
from t3d.kernels.skinny_launch import pays
from t3d.kernels.skinny_triton import linear_add_, linear_add_norm_, norm_gated_linear, norm_linear


class TritonOps:
    """What the methods mean: `Ops`. One stream at a time.

    Few tokens take the kernels of `skinny_triton`, whose norms are begun by one kernel and finished by the next; many
    take cuBLAS.

    Args:
        decode_half: places of half a tile in decoding.
        group: query heads of a key-value head.
        head_dim: D.
        device: where.
        num_sms: its streaming multiprocessors.
    """

    rope_and_store = staticmethod(rope_and_store)

    def __init__(self, decode_half: int, group: int, head_dim: int, device: torch.device, num_sms: int) -> None:
        self._workspace = AttentionWorkspace(decode_half, group, head_dim, device, num_sms)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        return rms_norm(x, weight, eps)

    def norm(self, x: Tensor, weight: Tensor, eps: float, num_outputs: int) -> Tensor | Normed:
        """See `Ops`."""
        if pays("norm", x.shape[0], num_outputs, x.shape[1]):
            return begin_norm(x, weight)
        return rms_norm(x, weight, eps)

    def linear(self, x: Tensor | Normed, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
        """See `Ops`."""
        if isinstance(x, Normed):
            return norm_linear(x, eps, weight, bias)
        return functional.linear(x, weight, bias)

    def gated_linear(self, x: Tensor | Normed, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        if isinstance(x, Normed):
            return norm_gated_linear(x, eps, weight)
        return silu_mul(functional.linear(x, weight))

    def linear_add_norm_(
        self, residual: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float, num_outputs: int
    ) -> Tensor | Normed:
        """See `Ops`."""
        if pays("norm", residual.shape[0], num_outputs, residual.shape[1]):
            return linear_add_norm_(residual, x, weight, norm_weight)
        self.linear_add_(residual, x, weight)
        return rms_norm(residual, norm_weight, eps)

    def linear_add_(self, residual: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `Ops`."""
        if pays("add", x.shape[0], *weight.shape):
            linear_add_(residual, x, weight)
        else:
            residual.addmm_(x, weight.t())

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, page_table: Tensor, attention: Attention) -> Tensor:
        """See `Ops`."""
        attended = paged_attention(
            query,
            keys,
            values,
            attention.tiles,
            page_table,
            attention.block_size,
            attention.scale,
            attention.half,
            attention.num_splits,
            self._workspace,
        )
        return attended.flatten(1)

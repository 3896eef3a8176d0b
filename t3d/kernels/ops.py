"""What a decoder needs done, and plain torch that does it; `t3d.kernels.ops_triton` does the same on a GPU.

Shape legend: N tokens, K inputs, O outputs of a linear layer, I intermediate size, T tiles, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from t3d.kernels.attention import paged_attention_reference
from t3d.kernels.rope import rope_and_store_reference


@dataclass(frozen=True, slots=True)
class Attention:
    """Who attends to what in one forward.

    Attributes:
        tiles: int32 [T, 5] (see `paged_attention_reference`).
        half: places of half a tile.
        block_size: B.
        scale: of the scores.
        num_splits: shares into which a tile's keys are cut, so that few tiles still use a whole GPU.
        num_pages: no tile sees beyond so many pages of its slot.
    """

    tiles: Tensor
    half: int
    block_size: int
    scale: float
    num_splits: int
    num_pages: int


Normed = Any
"""Normed tokens [N, K], in whatever form the next linear layer takes them: only the ops that made it look inside."""


class Ops(Protocol):
    """The steps of a layer of Llama, Qwen2 or Qwen3; norms are RMSNorm, weights are [O, K]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The norm of [N, K], done with: for what is not one of the linear layers here."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float, num_outputs: int) -> Normed:
        """The norm of [N, K], for a linear layer of so many outputs."""
        ...

    def linear(self, x: Normed, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
        """A linear layer of normed inputs: [N, K] -> [N, O]; `eps` is the norm's, for `x` may not be divided yet."""
        ...

    def gated_linear(self, x: Normed, weight: Tensor, eps: float) -> Tensor:
        """silu(gate) * up of normed inputs, weight [2 * I, K], gate first: [N, K] -> [N, I]; `eps`: as in `linear`."""
        ...

    def linear_add_norm_(
        self, residual: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float, num_outputs: int
    ) -> Normed:
        """Add a linear layer of x [N, K] to the residual [N, O], in place; then `norm` of that."""
        ...

    def linear_add_(self, residual: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add a linear layer of x [N, K] to the residual [N, O], in place."""
        ...

    def rope_and_store(
        self,
        qkv: Tensor,
        q_norm_weight: Tensor | None,
        k_norm_weight: Tensor | None,
        eps: float,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        places: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """See `rope_and_store_reference`."""
        ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, page_table: Tensor, attention: Attention) -> Tensor:
        """Attention of [N, heads, D] over the pages, heads side by side: [N, heads * D]."""
        ...


class TorchOps:
    """Plain torch, for any device and dtype. What the methods mean: `Ops`."""

    rope_and_store = staticmethod(rope_and_store_reference)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        return rms_norm(x, weight, eps)

    def norm(self, x: Tensor, weight: Tensor, eps: float, num_outputs: int) -> Normed:
        """See `Ops`."""
        return rms_norm(x, weight, eps)

    def linear(self, x: Normed, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
        """See `Ops`."""
        return functional.linear(x, weight, bias)

    def gated_linear(self, x: Normed, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        gate, up = functional.linear(x, weight).chunk(2, dim=-1)
        return functional.silu(gate) * up

    def linear_add_norm_(
        self, residual: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float, num_outputs: int
    ) -> Normed:
        """See `Ops`."""
        self.linear_add_(residual, x, weight)
        return rms_norm(residual, norm_weight, eps)

    def linear_add_(self, residual: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `Ops`."""
        residual.addmm_(x, weight.t())

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, page_table: Tensor, attention: Attention) -> Tensor:
        """See `Ops`."""
        visible = page_table[:, : attention.num_pages]
        attended = paged_attention_reference(
            query,
            keys,
            values,
            attention.tiles,
            visible,
            attention.block_size,
            attention.scale,
            attention.half,
        )
        return attended.flatten(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The models' RMSNorm of [N, K] (arXiv:1910.07467): normed in float32, rounded, then times the weight."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)

"""How the experts of a mixture are computed: chosen in this one place, for every device.

transformers has three ways: a loop over the experts that were hit ("eager"), products with weights gathered for each
token ("batched_mm"), and tokens sorted by expert with one product over all groups ("grouped_mm", its default).

- On the CPU, and in float64: the loop. It takes any dtype and size; grouped products take no float64, and no rows that
  are not a multiple of 16 bytes.
- On CUDA: grouped. Each expert that was hit is read once, and no shape depends on which they were, so that layers
  compile and checkpointed ones are recomputed alike; nor has the host to know any group's size (bfloat16,
  `FAST_CAPABILITIES`; elsewhere torch itself loops, after one look at the sizes). Gathered weights would be a copy of
  eight experts for each token.
- Inside a CUDA graph: grouped where that asks the host for nothing, else every expert over every token, of which the
  chosen ones are taken. That is more arithmetic, but decoding waits for memory, and a few dozen tokens hit all experts.

Shape legend: N tokens, K hidden size, E experts, C experts chosen for each token, I their intermediate size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

EXPERTS = "t3d_experts"
"""The name under which transformers finds `experts_forward`."""
FAST_CAPABILITIES = (9, 10)
"""Major compute capabilities (Hopper, Blackwell) for which torch has a kernel for grouped bfloat16 products."""
CHUNK_NUMBERS = 2**26
"""In the largest array [E, N, 2 * I] or [E, N, K] of `every_expert`."""

Experts = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(a layer's experts, hidden [N, K], chosen int64 [N, C], weights [N, C]) -> [N, K], as transformers calls them."""

hit_experts: Experts = inspect.unwrap(Qwen3MoeExperts.forward)
"""transformers' own loop over the experts that were hit."""


def experts_forward(experts: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What a model's layers call: the way that fits the device, in the dtype that autocast asks for, where it is on."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        hidden = hidden.to(torch.get_autocast_dtype(device_type))  # what is added to the residual stream has its dtype
    compute = hit_experts if device_type == "cpu" or hidden.dtype == torch.float64 else grouped_experts
    return compute(experts, hidden, chosen, weights)


def grouped_experts(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """transformers' grouped products, with weights in the dtype of `hidden`: autocast does not reach these."""
    if experts.gate_up_proj.dtype != hidden.dtype:
        experts = _Lowered(experts, hidden.dtype)
    return grouped_mm_experts_forward(experts, hidden, chosen, weights)


class _Lowered:
    """A layer's experts with weights in another dtype, as far as transformers' grouped products ask for them."""

    has_gate, has_bias, is_transposed = True, False, False

    def __init__(self, experts: Any, dtype: torch.dtype) -> None:
        self.gate_up_proj, self.down_proj = experts.gate_up_proj.to(dtype), experts.down_proj.to(dtype)
        self.num_experts, self._apply_gate = experts.num_experts, experts._apply_gate


def every_expert(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """All experts over all tokens, of which the chosen ones are taken: its work does not depend on what is chosen."""
    num_experts, width, _ = experts.gate_up_proj.shape
    size = max(1, CHUNK_NUMBERS // (num_experts * max(width, hidden.shape[1])))
    parts = zip(hidden.split(size), chosen.split(size), weights.split(size), strict=True)
    return torch.cat([_every_expert(experts, *part) for part in parts])


def _every_expert(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    gate, up = torch.matmul(hidden, experts.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    outputs = torch.bmm(experts.act_fn(gate) * up, experts.down_proj.transpose(1, 2))  # [E, N, K]
    tokens = torch.arange(len(hidden), device=hidden.device)[:, None]
    return (outputs[chosen, tokens] * weights[..., None]).sum(dim=1)


def capturable_experts(dtype: torch.dtype, device: torch.device) -> Experts:
    """The way for work that CUDA graphs capture, of a model in this dtype; on the CPU nothing is captured."""
    if device.type == "cpu":
        return hit_experts
    is_fast = dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in FAST_CAPABILITIES
    return grouped_mm_experts_forward if is_fast else every_expert


def scratch_numbers(config: Any, num_tokens: int) -> int:
    """Numbers in the arrays that a layer's experts make of so many tokens, however they are computed; generous."""
    grouped = num_tokens * config.num_experts_per_tok * (4 * config.hidden_size + 5 * config.moe_intermediate_size)
    return max(grouped, 4 * CHUNK_NUMBERS)


def is_mixture(feed_forward: nn.Module) -> bool:
    """Whether a layer's `mlp` is a router and experts, not one pair of matrices for all tokens."""
    return hasattr(feed_forward, "experts")


def mixture_forward(mixture: Any, hidden: Tensor, compute: Experts) -> Tensor:
    """A layer's router and experts over [N, K], the experts computed in the given way."""
    _, weights, chosen = mixture.gate(hidden)
    return compute(mixture.experts, hidden, chosen, weights)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, experts_forward)

"""How much may run at once: slots and pages from the memory that the engine may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from t3d.engine.continuous.pages import PAGE_SIZE, bytes_per_page, num_pages_for
from t3d.engine.sharded.agreeing import agreed_limit
from t3d.errors import RequestError
from t3d.models import BlockDiffusionModel, feed_forward_of, own_config
from t3d.models.experts import scratch_numbers

MAX_SLOTS = 256
PREFILL_TOKENS = 2**13
CPU_BYTES = 2 * 2**30
CUDA_SHARE = 0.9
GRAPH_BYTES = 3 * 2**29
"""What CUDA graphs, their pool and compiled kernels hold beside the tensors that are counted."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a core is given.

    Attributes:
        num_slots: requests that run together.
        num_pages: of keys and values, the padding's included.
        num_positions: of the longest request.
        prefill_tokens: prompt tokens of one prefill forward, between two steps.
    """

    num_slots: int
    num_pages: int
    num_positions: int
    prefill_tokens: int = PREFILL_TOKENS


def plan_budget(
    model: BlockDiffusionModel,
    block_size: int,
    num_positions: int,
    num_slots: int | None = None,
    memory_gib: float | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    may_shorten: bool = False,
) -> Budget:
    """The largest useful budget that memory allows.

    Args:
        model: loaded; its weights count.
        block_size: B.
        num_positions: of the longest request.
        num_slots: requests that run together at most; None is 256.
        memory_gib: that the process may hold on the device, weights included; None is nine tenths of what is there for
            it (on the CPU 2 GiB for keys and values).
        prefill_tokens: of one prefill forward.
        may_shorten: give a smaller `num_positions` rather than refuse.

    Raises:
        RequestError: not even one request of `num_positions` fits.
    """
    slots = num_slots or MAX_SLOTS
    for_pages = _bytes_for_pages(model, block_size, slots, memory_gib, prefill_tokens)
    affordable = agreed_limit(for_pages // bytes_per_page(own_config(model), model.dtype), model.sharding)
    useful = slots * num_pages_for(num_positions + PAGE_SIZE) + 1
    num_pages = min(affordable, useful)
    if may_shorten and num_pages > 1:
        num_positions = min(num_positions, (num_pages - 1) * PAGE_SIZE)
    if num_pages - 1 < num_pages_for(num_positions):
        raise RequestError(
            f"a request of {num_positions} positions needs {num_pages_for(num_positions)} pages of keys and values, "
            f"and memory holds {max(0, num_pages - 1)}: shorten prompt or max_new_tokens, or raise memory_gib"
        )
    return Budget(slots, num_pages, num_positions, prefill_tokens)


def _bytes_for_pages(
    model: BlockDiffusionModel, block_size: int, num_slots: int, memory_gib: float | None, prefill_tokens: int
) -> int:
    device = model.device
    if device.type != "cuda":
        return CPU_BYTES if memory_gib is None else int(memory_gib * 2**30)
    held = torch.cuda.memory_allocated(device)
    if memory_gib is None:
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
        allowed = int(CUDA_SHARE * free)
    else:
        allowed = int(memory_gib * 2**30) - held
    return allowed - _workspace_bytes(own_config(model), model.dtype, block_size, num_slots, prefill_tokens)


def _workspace_bytes(
    config: PretrainedConfig, dtype: torch.dtype, block_size: int, num_slots: int, prefill_tokens: int
) -> int:
    """Activations of the largest forward, logits of the largest draw, and what graphs hold; generous."""
    num_tokens = max(prefill_tokens, 2 * block_size * num_slots)
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    per_token = 4 * config.hidden_size + 2 * heads + 3 * config.intermediate_size
    experts = scratch_numbers(config, num_tokens) if feed_forward_of(config).held else 0
    logits = min(block_size * num_slots * config.vocab_size, 2**28)
    # A filtered draw sorts float32 logits and their ids.
    activations = 2 * num_tokens * per_token + experts
    return activations * dtype.itemsize + logits * (2 * dtype.itemsize + 4) + GRAPH_BYTES

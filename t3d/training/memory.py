"""Selective activation checkpointing: which layers forget their activations, so that the rest fits.

Under torch.compile a layer's backward already recomputes what is cheap; here whole layers are computed again, as few as
memory asks for. Every layer costs alike, so their number is all there is to choose.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from t3d.corruption import PackedBatch
from t3d.models import BlockDiffusionModel
from t3d.models.scoring import CHUNK_LOGITS
from t3d.training.parallel.tensors import local_part
from t3d.training.scorer import Scorer

logger = logging.getLogger(__name__)

SAFE_SHARE = 0.92
"""Of what is free; the rest is lost between blocks of the allocator."""


def checkpoint_layers(model: BlockDiffusionModel, count: int) -> None:
    """The first `count` layers forget their activations from now on, the others keep them."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for index, layer in enumerate(model.model.layers):
        layer.gradient_checkpointing = index < count


def layers_to_checkpoint(num_layers: int, kept_bytes: int, input_bytes: int, free_bytes: int) -> int:
    """The fewest layers that must forget their activations.

    Args:
        num_layers: L.
        kept_bytes: that one layer keeps for its backward pass.
        input_bytes: that one layer keeps if it only remembers its input.
        free_bytes: for the activations of all layers, and once more for the layer whose backward runs.

    Returns:
        0 .. L; L also where even that does not fit.
    """
    for count in range(num_layers):
        if activation_bytes(num_layers, count, kept_bytes, input_bytes) <= free_bytes:
            return count
    return num_layers


def activation_bytes(num_layers: int, count: int, kept_bytes: int, input_bytes: int) -> int:
    """Of all layers, `count` of which only remember their input, and of the one whose backward runs."""
    return (num_layers - count + 1) * kept_bytes + count * input_bytes


def choose_layers(
    scorer: Scorer, batch: PackedBatch, optimizer: Optimizer, tokens_per_batch: int, scratch_bytes: int = 0
) -> int:
    """How many layers to checkpoint on this CUDA device, by what one of them is measured to keep.

    Args:
        scorer: the student's; what it trains has no gradients yet.
        batch: a large one, on the device.
        optimizer: of the student.
        tokens_per_batch: that no batch will exceed by much.
        scratch_bytes: that sharing the work with other processes takes for a while.
    """
    model, device = scorer.model, scorer.model.device
    to_come = bytes_to_come(model, optimizer) + scratch_bytes  # asked first: a forward may leave sharded weights whole
    shape = (*batch.input_ids.shape, model.config.hidden_size)
    # the residual stream comes in bfloat16 where products are computed in it
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    inputs = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
    scorer.run_layer(batch, inputs)  # compile, and let libraries take their workspace
    before = torch.cuda.memory_allocated(device)
    output = scorer.run_layer(batch, inputs)
    growth = max(1.0, tokens_per_batch / batch.input_ids.numel())
    kept, remembered = int(growth * (torch.cuda.memory_allocated(device) - before)), int(growth * inputs.nbytes)
    del output
    free = int(SAFE_SHARE * free_bytes(device)) - to_come
    num_layers = len(model.model.layers)
    count = layers_to_checkpoint(num_layers, kept, remembered, free)
    logger.info("%d of %d layers compute activations again: one keeps %.2f GiB", count, num_layers, kept / 2**30)
    return count


def free_bytes(device: torch.device) -> int:
    """What this process may still allocate on a CUDA device, under its own cap too."""
    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    capped = int(total * torch.cuda.get_per_process_memory_fraction(device)) - reserved
    return min(free, capped) + reserved - allocated


def bytes_to_come(model: BlockDiffusionModel, optimizer: Optimizer) -> int:
    """Beside activations, before the end of the first step: gradients, the optimizer's state, the LM head's scratch."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = sum(local_part(weight).nbytes for weight in trained if weight.grad is None)
    head = model.lm_head.weight
    return gradients + _state_bytes(trained, optimizer) + head_scratch_bytes(head.numel(), head.requires_grad)


def head_scratch_bytes(num_weights: int, is_trained: bool, num_logits: int = CHUNK_LOGITS) -> int:
    """What scoring takes for a while: some arrays of one chunk's logits, copies of the head, sums of its gradient.

    Args:
        num_weights: of the LM head.
        is_trained: whether it has a gradient.
        num_logits: of a chunk; fewer where no batch fills one.
    """
    return 4 * 2 * num_logits + (3 * 4 * num_weights if is_trained else 2 * num_weights)


def _state_bytes(trained: Iterable[Tensor], optimizer: Optimizer) -> int:
    """Two moments for every weight that has none yet."""
    byte_each = "8bit" in type(optimizer).__name__
    missing = [weight for weight in trained if weight not in optimizer.state]
    held = (local_part(weight) for weight in missing)
    return sum(2 * (weight.numel() if byte_each else weight.nbytes) for weight in held)

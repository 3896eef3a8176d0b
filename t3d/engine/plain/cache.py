"""Keys and values of every running request, written in place.

A key lies at its token's absolute position. That is the whole bookkeeping: with the mask "key block <= query block"
a query sees only keys that are final or of its own active block, so the active block's entries may simply be
overwritten at each step, and what a slot's former request left behind lies in later blocks, out of sight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

CPU_BUDGET_BYTES = 2 * 2**30
CUDA_BUDGET_SHARE = 0.25
MAX_ROWS = 512


class KVCache:
    """Preallocated keys and values; `update` is what transformers' attention layers call.

    Shape legend: S slots, H key-value heads, L positions, D head dimension, N rows of a forward, Q queries a row.
    Place L of every slot takes the padding tokens' entries; no one ever sees it.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        num_slots: int,
        num_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_slots, config.num_key_value_heads, num_positions + 1, config.head_dim)
        layers = range(config.num_hidden_layers)
        # Zeros, not empty: a masked key has weight 0, and 0 times a stray NaN would still be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.padding_place = num_positions
        self._rows: Tensor | slice = slice(0, 0)
        self._write_index: tuple[Tensor, slice, Tensor]
        self._num_visible = 0

    def point_at(self, slots: Tensor, places: Tensor, num_visible: int, is_leading: bool) -> None:
        """Say where the next forward's tokens go.

        Args:
            slots: int64 [N] the slot of each row.
            places: int64 [N, Q] absolute position of each token, `padding_place` for padding.
            num_visible: attention gets positions 0 .. num_visible-1.
            is_leading: the slots are 0 .. N-1 in order, so that attention can read the cache without a copy.
        """
        self._rows = slice(0, len(slots)) if is_leading else slots
        self._write_index = (slots[:, None], slice(None), places)
        self._num_visible = num_visible

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store a forward's keys and values [N, H, Q, D]; return what its queries attend to [N, H, num_visible, D]."""
        found = []
        for stored, new in ((self.keys[layer_idx], keys), (self.values[layer_idx], values)):
            stored[self._write_index] = new.transpose(1, 2)
            found.append(stored[:, :, : self._num_visible][self._rows])
        return found[0], found[1]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` to slots `target`, int64 [K] both."""
        for stored in (*self.keys, *self.values):
            stored[target] = stored[source]

    def clear(self, slots: Tensor) -> None:
        """Zero slots that may hold NaN or infinity, int64 [K]."""
        for stored in (*self.keys, *self.values):
            stored[slots] = 0


def rows_that_fit(config: PretrainedConfig, num_positions: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many requests of `num_positions` positions to run together when the caller does not say: 1 .. 512.

    Their keys and values take at most a quarter of what is free on a CUDA device, 2 GiB on the CPU.
    """
    numbers_per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    bytes_per_row = numbers_per_position * dtype.itemsize * (num_positions + 1)
    return max(1, min(MAX_ROWS, _budget_bytes(device) // bytes_per_row))


def _budget_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BUDGET_BYTES
    held_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(CUDA_BUDGET_SHARE * (torch.cuda.mem_get_info(device)[0] + held_by_torch))

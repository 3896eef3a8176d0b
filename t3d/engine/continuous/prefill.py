"""Stores the keys and values of prompts: small chunks as CUDA graphs, whose launch the host would be too slow for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from t3d.engine.continuous.decoder import Decoder
from t3d.engine.continuous.graphs import Eager, Graphs
from t3d.engine.continuous.pages import PagedCache, num_pages_for
from t3d.engine.continuous.transfer import sent
from t3d.kernels.ops import Attention

GRAPH_TOKENS = (64, 128, 256, 512, 1024, 2048)
"""Sizes that graphs are made for; a longer chunk keeps the device busy while the host launches it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a prompt, of whole blocks.

    Attributes:
        slot: of its request.
        start: position of the first token.
        tokens: int64 [length].
    """

    slot: int
    start: int
    tokens: np.ndarray


class Prefill:
    """Runs chunks of spans.

    Args:
        decoder, cache: the model and its pages.
        graphs: where graphs are kept, None without CUDA.
        half: half an attention tile, in tokens.
        block_size: B.
        scale: of attention scores.
        num_slots: no chunk has more spans.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        graphs: Graphs | Eager | None,
        half: int,
        block_size: int,
        scale: float,
        num_slots: int,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._graphs = graphs
        self._half = half
        self._block_size = block_size
        self._scale = scale
        self._num_slots = num_slots
        self._inputs: dict[int, Tensor] = {}

    def run(self, spans: list[Span]) -> None:
        """Store the spans' keys and values, one after the other in one forward."""
        positions = [np.arange(span.start, span.start + len(span.tokens)) for span in spans]
        places = [
            self._cache.places(span.slot, int(each[0]), int(each[-1]) + 1)
            for span, each in zip(spans, positions, strict=True)
        ]
        lengths = np.array([len(span.tokens) for span in spans])
        tiles = prefill_tiles(
            np.array([span.slot for span in spans]), np.array([span.start for span in spans]), lengths, self._half
        )
        columns = np.stack(
            [np.concatenate([span.tokens for span in spans]), np.concatenate(positions), np.concatenate(places)]
        )
        num_tokens = columns.shape[1]
        size = next((size for size in GRAPH_TOKENS if size >= num_tokens), None)
        if self._graphs is None or size is None:
            inputs = torch.from_numpy(_packed(columns, tiles, num_tokens, len(tiles)))
            self._store(sent(inputs, self._cache.table.device), num_tokens, num_pages_for(int(columns[1].max()) + 1))
            return
        inputs = torch.from_numpy(_packed(columns, tiles, size, self._num_tiles(size)))
        self._static_inputs(size).copy_(inputs.pin_memory(), non_blocking=True)
        num_pages = self._cache.table.shape[1]  # a graph has to do for all contexts
        self._graphs.replay(("prefill", size), lambda: self._store(self._static_inputs(size), size, num_pages))

    def _num_tiles(self, size: int) -> int:
        """Tiles of any spans of so many tokens in all."""
        return size // (2 * self._half) + min(self._num_slots, size // self._block_size) + 1

    def _static_inputs(self, size: int) -> Tensor:
        """Where a graph reads its inputs; all padding at first."""
        if size not in self._inputs:
            length = 3 * size + 5 * self._num_tiles(size)
            self._inputs[size] = torch.zeros(length, dtype=torch.int32, device=self._cache.table.device)
        return self._inputs[size]

    def _store(self, inputs: Tensor, num_tokens: int, num_pages: int) -> None:
        tokens, positions, places = inputs[: 3 * num_tokens].view(3, num_tokens)
        tiles = inputs[3 * num_tokens :].view(-1, 5)
        attention = Attention(tiles, self._half, self._block_size, self._scale, num_splits=1, num_pages=num_pages)
        self._decoder.store(tokens.long(), positions, places, attention)


def _packed(columns: np.ndarray, tiles: np.ndarray, num_tokens: int, num_tiles: int) -> np.ndarray:
    """Tokens, positions, places [3, N] and tiles [T, 5], both filled up with padding, as one int32 array to send."""
    packed = np.zeros(3 * num_tokens + 5 * num_tiles, dtype=np.int32)
    packed[: 3 * num_tokens].reshape(3, num_tokens)[:, : columns.shape[1]] = columns
    packed[3 * num_tokens :].reshape(num_tiles, 5)[: len(tiles)] = tiles
    return packed


def prefill_tiles(slots: np.ndarray, starts: np.ndarray, lengths: np.ndarray, half: int) -> np.ndarray:
    """Attention's work for stretches of tokens that lie one behind the other.

    Args:
        slots, starts, lengths: int [K] of each stretch: slot, first position, tokens.
        half: a tile is 2 * half consecutive tokens.

    Returns:
        int [tiles, 5] (see `t3d.kernels.attention`).
    """
    per_tile = 2 * half
    counts = -(-lengths // per_tile)
    owner = np.repeat(np.arange(len(slots)), counts)
    offset = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)) * per_tile
    first = (np.cumsum(lengths) - lengths)[owner] + offset
    end = np.minimum(per_tile, lengths[owner] - offset)
    return np.stack([slots[owner], starts[owner] + offset, first, first + half, end], axis=1)

"""CUDA graphs, made at first need and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Graphs:
    """Work by key. Whatever a replay leaves has to be used before the next: all graphs share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor | None]] = {}

    def make(self, key: Hashable, work: Callable[[], Tensor | None]) -> None:
        """Capture `work` under a key that has none yet.

        It runs once before, so that kernels are compiled: its inputs must be such that this changes nothing.
        """
        if key in self._captured:
            return
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        self._captured[key] = (graph, output)

    def replay(self, key: Hashable, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Run `work` as the graph of this key; its output, which the next replay overwrites."""
        self.make(key, work)
        graph, output = self._captured[key]
        graph.replay()
        return output

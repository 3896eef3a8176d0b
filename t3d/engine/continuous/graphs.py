"""CUDA graphs, made at first need and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MAX_GRAPHS = 1024
"""That are kept. Requests all of one setting need some hundreds; mixtures of rules and samplings have no such bound."""
_CAPTURING = threading.Lock()
"""Of the process, in which torch allows one capture at a time; waiting for the whole device would break another's."""


class Graphs:
    """Work by key. Whatever a replay leaves has to be used before the next: all graphs share one memory pool.

    Engines in other threads may launch work during a capture, but not capture.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor | None]] = OrderedDict()

    def make(self, key: Hashable, work: Callable[[], Tensor | None]) -> None:
        """Capture `work` under a key that has none yet; of too many, the one used longest ago is dropped.

        It runs once before, so that kernels are compiled: its inputs must be such that this changes nothing.
        """
        if key in self._captured:
            return
        with _CAPTURING:
            work()
            torch.cuda.synchronize()
            while len(self._captured) >= MAX_GRAPHS:  # now, since none of them runs
                self._captured.popitem(last=False)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = work()
        self._captured[key] = (graph, output)

    def replay(self, key: Hashable, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Run `work` as the graph of this key; its output, which the next replay overwrites."""
        self.make(key, work)
        self._captured.move_to_end(key)
        graph, output = self._captured[key]
        graph.replay()
        return output


class Eager:
    """In place of `Graphs`, in the same shapes, where work asks other processes for something: launched each time."""

    def make(self, key: Hashable, work: Callable[[], Tensor | None]) -> None:
        """Nothing to do."""

    def replay(self, key: Hashable, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Run `work`."""
        return work()

"""How fast a run trains, by the wall clock between two looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple

import torch
from accelerate import Accelerator

from t3d.corruption import PackedBatch
from t3d.training.throughput import Work, peak_flops, work_of


class Meter:
    """Counts what steps held, and the time that they took.

    Args:
        accelerator: of the run; readings are sums over its processes.
        flops: that an amount of work needs.
        seconds_before: that earlier parts of the same run took.
    """

    def __init__(self, accelerator: Accelerator, flops: Callable[[Work], float], seconds_before: float = 0.0) -> None:
        self._accelerator, self._flops = accelerator, flops
        self._begin = time.monotonic() - seconds_before
        self._work = Work(0, 0, 0, 0)
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of the whole run so far, earlier parts of a resumed one included."""
        return time.monotonic() - self._begin

    def count(self, batches: Iterable[PackedBatch]) -> None:
        """One more step, of this process's batches."""
        step = work_of(batches)
        self._work = Work(*(have + more for have, more in zip(astuple(self._work), astuple(step), strict=True)))

    def read(self) -> dict[str, float]:
        """Metrics since the last reading, over all processes; each of them must ask.

        `tokens_per_second` counts real tokens, clean and noisy; `mfu` is there where the device's peak is known;
        `memory_gib` is what the main process holds on a CUDA device.
        """
        taken = max(time.monotonic() - self._since, 1e-9)
        device = self._accelerator.device
        mine = torch.tensor(
            [self._work.num_tokens, self._work.num_examples, self._flops(self._work)],
            dtype=torch.float64,
            device=device,
        )
        tokens, examples, flops = self._accelerator.reduce(mine, "sum").tolist()
        reading = {"tokens_per_second": tokens / taken, "examples_per_second": examples / taken}
        peak = peak_flops(device)
        if peak is not None:
            reading["mfu"] = flops / taken / (peak * self._accelerator.num_processes)
        if device.type == "cuda":
            reading["memory_gib"] = torch.cuda.memory_reserved(device) / 2**30
        self._work, self._since = Work(0, 0, 0, 0), time.monotonic()
        return reading

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no training time: it counts in `seconds` alone."""
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin

"""Where the time of an optimizer step goes: the learner names its parts, a benchmark times them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

REFERENCE, FORWARD, BACKWARD, OPTIMIZER = PHASES = ("reference", "forward", "backward", "optimizer")
"""The reference's forwards; the student's, loss included; its backward; clipping, update and reference refresh."""


class Phases:
    """Is told which part of a step runs, and takes no notice."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Around one stretch of the part `name`; stretches do not overlap."""
        return nullcontext()


class TimedPhases(Phases):
    """Adds up how long each part runs, without making the device wait.

    Args:
        device: CUDA runs behind the program, so there the time is taken in its own queue of work.
        clock: seconds of the program, for any other device.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._stretches: list[tuple[str, Callable[[], float]]] = []

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """As `Phases`."""
        return self._on_cuda(name) if self._device.type == "cuda" else self._in_program(name)

    def seconds(self) -> dict[str, float]:
        """Part -> seconds since the last call; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        totals: dict[str, float] = {}
        for name, elapsed in self._stretches:
            totals[name] = totals.get(name, 0.0) + elapsed()
        self._stretches.clear()
        return totals

    @contextmanager
    def _on_cuda(self, name: str) -> Iterator[None]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._stretches.append((name, lambda: begin.elapsed_time(end) / 1000))

    @contextmanager
    def _in_program(self, name: str) -> Iterator[None]:
        begin = self._clock()
        yield
        seconds = self._clock() - begin
        self._stretches.append((name, lambda: seconds))

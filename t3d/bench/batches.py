"""Measure runs over a batch of requests: all submitted at once, the clock stops when the last is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from t3d.bench.plan import Plan
from t3d.bench.shapes import random_prompts
from t3d.bench.timing import OnStretch, Stretch, check_length, counted, wait_for
from t3d.engine import Engine
from t3d.engine.continuous import ContinuousEngine
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.request import Request
from t3d.models import BlockDiffusionModel
from t3d.types import Decoding, Generation


class FirstBlocks(ContinuousEngine):
    """The continuous engine, noting when each request's first block becomes known.

    Attributes:
        times: arrival -> `time.perf_counter()`, of the latest run.
    """

    def __init__(self, model: BlockDiffusionModel, max_batch_size: int, memory_gib: float | None) -> None:
        super().__init__(model, max_batch_size, memory_gib, on_block=self._note)
        self.times: dict[int, float] = {}

    def run(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        """As `ContinuousEngine.run`."""
        self.times = {}
        return super().run(requests)

    def _note(self, sequence: Sequence) -> None:
        self.times[sequence.arrival] = time.perf_counter()
        sequence.on_block = None


class BatchBench:
    """An engine for one number of concurrent requests.

    Args:
        model: to decode with.
        plan: what else to measure with.
        concurrency: slots.
    """

    def __init__(self, model: BlockDiffusionModel, plan: Plan, concurrency: int) -> None:
        self._model = model
        self._plan = plan
        self._concurrency = concurrency
        self._backend = FirstBlocks(model, concurrency, plan.memory_gib) if plan.backend == "continuous" else None
        self._engine = Engine(
            model, stop_token_ids=[], max_batch_size=concurrency, backend=self._backend or plan.backend
        )

    def measure(self, decoding: Decoding, on_run: OnStretch) -> list[Stretch]:
        """Warm up (kernels are compiled, graphs made), then time the plan's repeats; `on_run` hears of each."""
        runs = []
        for number in range(1 + self._plan.repeats):
            run = self._run(decoding, number)
            on_run(run)
            runs.append(run)
        return runs[1:]

    def _run(self, decoding: Decoding, number: int) -> Stretch:
        """One run. Its prompts are its own: prompts that were seen before would share the pages of their first run."""
        rng = np.random.default_rng([self._plan.seed, self._concurrency, decoding.steps_per_block or 0, number])
        count = self._concurrency * self._plan.requests_per_slot
        prompts = random_prompts(self._model.config, count, self._plan.prompt_tokens, rng)
        before = self._backend.counters if self._backend else {}
        generations, begin, seconds = self._timed(prompts, replace(decoding, seed=self._plan.seed))
        for generation in generations:
            check_length(generation, decoding.max_new_tokens)
        num_forwards = sum(generation.num_forwards for generation in generations)
        num_prefills = count if self._plan.prompt_tokens >= (decoding.block_size or 0) else 0
        run = Stretch(seconds, count * decoding.max_new_tokens, num_forwards - num_prefills, num_prefills)
        if self._backend is None:
            return run
        first_blocks = [self._backend.times[arrival] - begin for arrival in range(count)]
        return replace(run, counters=counted(before, self._backend.counters), first_block_seconds=first_blocks)

    def _timed(self, prompts: list[list[int]], decoding: Decoding) -> tuple[list[Generation], float, float]:
        """Answers, when it began, and the seconds it took."""
        wait_for(self._model.device)
        begin = time.perf_counter()
        generations = self._engine.generate(prompts, decoding)
        wait_for(self._model.device)
        return generations, begin, time.perf_counter() - begin

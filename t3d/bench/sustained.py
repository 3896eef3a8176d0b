"""Measure a full queue: answers of many lengths, every slot taken, tokens counted as their blocks become known."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import numpy as np

from t3d.bench.plan import Plan, Queue
from t3d.bench.shapes import random_prompts
from t3d.bench.timing import OnStretch, Stretch, check_length, counted, wait_for
from t3d.engine.continuous import ContinuousEngine
from t3d.engine.continuous.core import Core
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.request import Request, check_request
from t3d.errors import WorkError
from t3d.models import BlockDiffusionModel
from t3d.noise import derive_seeds
from t3d.types import Decoding

NUM_PARTS = 5
"""The window is measured in so many parts, that show whether the speed was steady."""


class QueueBench:
    """A core with a queue before it; dropping it drops what still waits.

    Args:
        model: to decode with.
        plan: what else to measure with.
        queue: the plan's.
        concurrency: slots.
    """

    def __init__(self, model: BlockDiffusionModel, plan: Plan, queue: Queue, concurrency: int) -> None:
        self._model = model
        self._plan = plan
        self._queue = queue
        self._concurrency = concurrency
        self._num_tokens = 0
        self._num_finished = 0

    def measure(self, decoding: Decoding, on_part: OnStretch) -> list[Stretch]:
        """Submit all, warm up, then time the parts of the window; `on_part` hears of each, the warm-up included."""
        requests = self._requests(decoding)
        core = ContinuousEngine(self._model, self._concurrency, self._plan.memory_gib).core_for(requests)
        for arrival, request in enumerate(requests):
            core.submit(Sequence(request, arrival, on_block=self._count))
        parts = []
        for seconds in (self._queue.warm_up_seconds, *[self._queue.seconds / NUM_PARTS] * NUM_PARTS):
            part = self._part(core, seconds)
            on_part(part)
            parts.append(part)
        wait_for(self._model.device)  # a step is under way, and its memory about to be freed
        return parts[1:]

    def _requests(self, decoding: Decoding) -> list[Request]:
        count = self._queue.num_requests
        rng = np.random.default_rng(self._plan.seed)
        prompts = random_prompts(self._model.config, count, self._plan.prompt_tokens, rng)
        low, high = self._queue.answer_tokens
        lengths = rng.integers(low, high, size=count, endpoint=True).tolist()
        settings = {length: replace(decoding, max_new_tokens=length) for length in set(lengths)}
        seeds = derive_seeds(self._plan.seed, count)
        return [
            check_request(index, prompt, settings[length], seed, (), self._model.config)
            for index, (prompt, length, seed) in enumerate(zip(prompts, lengths, seeds, strict=True))
        ]

    def _part(self, core: Core, seconds: float) -> Stretch:
        """Step for some seconds. A request's prefill is counted once the request is over."""
        begin, before = time.perf_counter(), asdict(core.counters)
        num_tokens, num_finished = self._num_tokens, self._num_finished
        while (now := time.perf_counter()) - begin < seconds:
            if core.num_waiting == 0:
                raise WorkError(
                    f"the queue of {self._queue.num_requests} ran dry, so that not every slot was full: queue more, or "
                    "measure for fewer seconds"
                )
            for sequence in core.step():
                check_length(sequence.generation(), sequence.request.decoding.max_new_tokens)
                self._num_finished += 1
        counters = counted(before, asdict(core.counters))
        finished = self._num_finished - num_finished
        return Stretch(now - begin, self._num_tokens - num_tokens, counters.num_rows, finished, counters)

    def _count(self, sequence: Sequence) -> None:
        self._num_tokens += num_new_tokens(sequence)


def num_new_tokens(sequence: Sequence) -> int:
    """Answer tokens in the newest finished block: not the prompt's, nor what lies beyond the answer's length."""
    request = sequence.request
    end = request.prefill_length + len(sequence.rows) * request.block_size
    begin = max(end - request.block_size, request.prompt_length)
    return min(end, request.max_length) - begin

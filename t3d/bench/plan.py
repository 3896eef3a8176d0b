"""What to measure, checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from t3d.bench.shapes import shape_config
from t3d.engine.request import check_request
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig, mask_token_id
from t3d.types import Decoding

BACKENDS = ("continuous", "plain")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that keeps every slot full.

    Attributes:
        num_requests: waiting at the start; more than get their turn.
        answer_tokens: shortest and longest answer; lengths are drawn uniformly from shortest .. longest.
        seconds: of the measured window.
        warm_up_seconds: of running before it.
    """

    num_requests: int
    answer_tokens: tuple[int, int]
    seconds: float
    warm_up_seconds: float

    def check(self) -> None:
        """Raise a `RequestError` about what is wrong."""
        low, high = self.answer_tokens
        if not 1 <= low <= high:
            raise RequestError(f"answer-tokens {low}-{high}: write SHORTEST-LONGEST, from 1 on, such as 50-2000")
        for name, value in (("seconds", self.seconds), ("warm-up", self.warm_up_seconds)):
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} must be more than 0, not {value}")


@dataclass(frozen=True, slots=True)
class Plan:
    """A table of measurements: each number of requests with each setting.

    Attributes:
        shape: of the model, a name in `SHAPES`.
        concurrencies: requests decoded together.
        decodings: settings with `block_size` and `steps_per_block`; their `max_new_tokens` is every answer's length
            (not a queue's).
        prompt_tokens: of every prompt.
        requests_per_slot: a run's requests are this times the concurrency.
        repeats: timed runs of each measurement.
        backend: "continuous" or "plain".
        memory_gib: that the process may hold on the device; None is nine tenths of what there is.
        seed: of weights, prompts and answer lengths.
        queue: measure a full queue instead of runs over a batch of requests.
    """

    shape: str
    concurrencies: tuple[int, ...]
    decodings: tuple[Decoding, ...]
    prompt_tokens: int = 128
    requests_per_slot: int = 1
    repeats: int = 3
    backend: str = "continuous"
    memory_gib: float | None = None
    seed: int = 0
    queue: Queue | None = None

    def check(self) -> BlockDiffusionConfig:
        """The model's config, if all of the plan can be run.

        Raises:
            RequestError: it cannot.
        """
        config = shape_config(self.shape)
        numbers = {"prompt-tokens": self.prompt_tokens, "requests-per-slot": self.requests_per_slot}
        numbers |= {"repeats": self.repeats, "concurrency": min(self.concurrencies)}
        for name, number in numbers.items():
            if number < 1:
                raise RequestError(f"{name} must be at least 1, not {number}")
        if self.memory_gib is not None and not (math.isfinite(self.memory_gib) and self.memory_gib > 0):
            raise RequestError(f"memory-gib must be more than 0, not {self.memory_gib}")
        if self.backend not in BACKENDS:
            raise RequestError(f"backend {self.backend!r} is unknown: use {' or '.join(BACKENDS)}")
        if self.queue is not None:
            self._check_queue(self.queue)
        self._check_lengths(config)
        return config

    def _check_queue(self, queue: Queue) -> None:
        queue.check()
        if self.backend != "continuous":
            raise RequestError("--queue needs the continuous backend: the plain one has no slots to keep full")
        if queue.num_requests <= max(self.concurrencies):
            raise RequestError(
                f"queue of {queue.num_requests} keeps no {max(self.concurrencies)} slots full: queue more, or lower "
                "concurrency"
            )

    def _check_lengths(self, config: BlockDiffusionConfig) -> None:
        """A prompt and its answer fit into the model's positions."""
        prompt = [int(mask_token_id(config) == 0)] * self.prompt_tokens
        for decoding in self.decodings:
            longest = self.queue.answer_tokens[1] if self.queue else decoding.max_new_tokens
            check_request(0, prompt, replace(decoding, max_new_tokens=longest), self.seed, (), config)

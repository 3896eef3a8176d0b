"""Figures for Prometheus, in a registry of the app's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from t3d.serve.models import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS_PER_FORWARD = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 6, 8, 16, 32)
NO_MODEL = ""
"""Label of requests that named none that is served."""


class Queues(Protocol):
    """Who knows how many answers are on their way."""

    def num_open(self, model: ServedModel) -> int:
        """Answers of a model that were let in and are not over."""
        ...


class Metrics:
    """Counts what has happened, and asks the engines for what is going on.

    Args:
        models: that are served.
        queues: the service.
    """

    def __init__(self, models: Iterable[ServedModel], queues: Queues) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_Load(models, queues))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"t3d_{name}", text, labels or ("model",), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"t3d_{name}", text, ("model",), buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests that were answered.", "model", "endpoint", "status")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self._completion_tokens = counter("completion_tokens", "Tokens of answers, stop tokens included.")
        self._forwards = counter("forwards", "Forward passes, counted for each answer.")
        self._tokens_per_forward = histogram("tokens_per_forward", "Of each answer.", TOKENS_PER_FORWARD)
        self._first_block = histogram("first_block_seconds", "From a request to its first finished block.", SECONDS)
        self._last_block = histogram("request_seconds", "From a request to the end of its last answer.", SECONDS)

    def on_request(self, model: str, endpoint: str, status: int) -> None:
        """A request was answered, or given up (status 499: the client has left)."""
        self._requests.labels(model, endpoint, str(status)).inc()

    def on_prompts(self, model: str, num_tokens: int) -> None:
        """A request was let in."""
        self._prompt_tokens.labels(model).inc(num_tokens)

    def on_first_block(self, model: str, seconds: float) -> None:
        """A request's first block is finished."""
        self._first_block.labels(model).observe(seconds)

    def on_answer(self, model: str, num_tokens: int, num_forwards: int) -> None:
        """An answer is over."""
        self._completion_tokens.labels(model).inc(num_tokens)
        self._forwards.labels(model).inc(num_forwards)
        self._tokens_per_forward.labels(model).observe(num_tokens / max(1, num_forwards))

    def on_last_block(self, model: str, seconds: float) -> None:
        """All of a request's answers are over."""
        self._last_block.labels(model).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Load(Collector):
    """What goes on at the moment it is asked for."""

    def __init__(self, models: Iterable[ServedModel], queues: Queues) -> None:
        self._models = list(models)
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        """One family a figure, one sample a model."""
        families = [
            GaugeMetricFamily("t3d_running", "Answers in the batch.", labels=["model"]),
            GaugeMetricFamily("t3d_waiting", "Answers that wait for their turn.", labels=["model"]),
            GaugeMetricFamily("t3d_open", "Answers that were let in and are not over.", labels=["model"]),
            GaugeMetricFamily(
                "t3d_kv_pages_share", "Of the pages for keys and values in use, 0 .. 1.", labels=["model"]
            ),
        ]
        for model in self._models:
            load = model.engine.load()
            figures = (load.num_running, load.num_waiting, self._queues.num_open(model), load.share_of_pages_in_use)
            for family, value in zip(families, figures, strict=True):
                family.add_metric([model.name], value)
        yield from families

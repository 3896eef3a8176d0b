"""What was measured on an H200, and what that says of models that were not.

Each figure follows from a file in `bench/results`, which a test works out anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t3d.doctor.gpus import GPUS, Gpu
from t3d.models import BlockDiffusionConfig, feed_forward_of

MEASURED_ON = GPUS["h200"]
COPY_SHARE = 0.89
"""Of the data sheet's memory bandwidth that a copy reached (`ceilings` in rollout-sdar-1.7b.json)."""
PRODUCT_SHARE = 0.79
"""Of the data sheet's bf16 peak that a product of two [8192, 8192] reached (as above)."""
MOST_MEMORY_ABOVE = 0.14
"""Measured peaks of memory lay at most this share above those worked out (SDAR-4B in recipes-h200.json)."""


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """How well a training step used the GPU.

    Attributes:
        file: in bench/results.
        hidden_size: of the model.
        has_adapter: whether adapters were trained.
        efficiency: share of the bf16 peak, recomputed layers counted as work done, without what adapters move through
            memory and without the update: what is left when these are taken off.
    """

    file: str
    hidden_size: int
    has_adapter: bool
    efficiency: float


@dataclass(frozen=True, slots=True)
class RolloutPoint:
    """How fast 256 requests were decoded at once, in blocks of four.

    Attributes:
        file: in bench/results.
        layer_weights: of all layers, their norms aside.
        steps: T, steps a block.
        tokens_per_second: of answers, prefill of 128 tokens each included.
    """

    file: str
    layer_weights: int
    steps: tuple[int, ...]
    tokens_per_second: tuple[float, ...]


TRAINING: tuple[TrainingPoint, ...] = (
    TrainingPoint("train-sdar-1.7b-real.json", 2048, False, 0.4671),
    TrainingPoint("train-sdar-1.7b-full.json", 2048, False, 0.4825),
    TrainingPoint("train-sdar-4b-real.json", 2560, False, 0.4995),
    TrainingPoint("train-sdar-4b-real-lora.json", 2560, True, 0.4739),
)
ROLLOUTS: tuple[RolloutPoint, ...] = (
    RolloutPoint("rollout-sdar-1.7b.json", 1_409_286_144, (1, 2, 4), (65_245.0, 41_495.0, 23_919.0)),
    RolloutPoint("rollout-sdar-4b.json", 3_633_315_840, (1, 2, 4), (29_456.0, 19_816.0, 11_142.0)),
)


def why_no_speed(config: BlockDiffusionConfig) -> str:
    """Why the figures say nothing of a model; empty where they do."""
    if feed_forward_of(config).held:
        return "no mixture of experts was measured"
    if 2 * config.hidden_size < min(point.hidden_size for point in TRAINING):  # these wait for the host, not the GPU
        return f"no model near hidden size {config.hidden_size} was measured"
    return ""


def efficiency(hidden_size: int, has_adapter: bool, points: Sequence[TrainingPoint] = TRAINING) -> float:
    """Share of an H200's peak: linear in the hidden size between those measured, the nearest one's beyond them.

    Points with adapters speak for adapters, if there are any; otherwise all that there are.
    """
    alike = [point for point in points if point.has_adapter == has_adapter] or list(points)
    sizes = sorted({point.hidden_size for point in alike})
    means = [float(np.mean([point.efficiency for point in alike if point.hidden_size == size])) for size in sizes]
    return float(np.interp(hidden_size, sizes, means))


def efficiency_on(gpu: Gpu, on_measured: float) -> float:
    """The same work's share of another GPU's peak.

    Products scale with the peak; the rest of the time, 1 / efficiency - 1 / `PRODUCT_SHARE` in units of the peak's, is
    moving through memory and scales with its bandwidth.
    """
    moving = max(0.0, 1 / on_measured - 1 / PRODUCT_SHARE)
    slower = (gpu.peak_flops / MEASURED_ON.peak_flops) * (MEASURED_ON.bytes_per_second / gpu.bytes_per_second)
    return 1 / (1 / PRODUCT_SHARE + moving * slower)


def seconds_per_answer_token(layer_weights: float, steps: float, points: Sequence[RolloutPoint] = ROLLOUTS) -> float:
    """Of an H200 that decodes 256 requests at once.

    Linear in T between those measured and beyond them: a token costs T + 1 positions, whatever the block size. Linear
    in the weights of the layers where two models were measured, proportional to them where one was.

    Args:
        layer_weights: that a token goes through.
        steps: T.
        points: measured.
    """
    sizes = [float(point.layer_weights) for point in points]
    seconds = [_at(steps, point.steps, [1 / rate for rate in point.tokens_per_second]) for point in points]
    if len(points) == 1:
        return seconds[0] * layer_weights / sizes[0]
    return _at(layer_weights, sizes, seconds)


def _at(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Linear between the places (ascending), and on along the first and the last stretch."""
    upper = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
    low, high = places[upper - 1], places[upper]
    share = (place - low) / (high - low)
    return values[upper - 1] + share * (values[upper] - values[upper - 1])

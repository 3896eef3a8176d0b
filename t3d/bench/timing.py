"""What one timed stretch of decoding did; a device that starts and ends idle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from t3d.engine.continuous.counters import Counters
from t3d.errors import WorkError
from t3d.training.device import release_memory
from t3d.types import Generation


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run over a batch of requests, or a part of a full queue's window.

    Attributes:
        seconds: wall time.
        num_tokens: of answers, that became known.
        num_decode_forwards: denoising forwards, once for each request that took part.
        num_prefill_forwards: the same of prefill.
        counters: what the engine did; None of the plain one.
        first_block_seconds: from the submission of all requests until each one's first block was known, in their order.
    """

    seconds: float
    num_tokens: int
    num_decode_forwards: int
    num_prefill_forwards: int
    counters: Counters | None = None
    first_block_seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens over all of the time."""
        return self.num_tokens / self.seconds


OnStretch = Callable[[Stretch], None]


def counted(before: Mapping[str, int], after: Mapping[str, int]) -> Counters:
    """What an engine did between two looks at its counters."""
    return Counters(**{name: after[name] - before[name] for name in after})


def check_length(generation: Generation, num_tokens: int) -> None:
    """Speed counts only for answers that are as long as they were asked to be.

    Raises:
        WorkError: this one is not.
    """
    if generation.finish_reason != "length" or len(generation.token_ids) != num_tokens:
        raise WorkError(
            f"an answer ended by {generation.finish_reason} after {len(generation.token_ids)} of {num_tokens} tokens: "
            "nothing was measured"
        )


def wait_for(device: torch.device) -> None:
    """Return once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Let go of what was measured before, so that the next finds its memory and the peak is the next one's own."""
    release_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

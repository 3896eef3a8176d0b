"""One request's life on the host: waiting, prefilling, decoding, swapped out, over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from t3d.engine.continuous.pages import num_pages_for, prefix_keys
from t3d.engine.continuous.state import Row
from t3d.engine.continuous.steps import Event, Report
from t3d.engine.request import Request
from t3d.types import Generation

NOT_FINITE = "the model's logits were not finite"

OnBlock = Callable[["Sequence"], None]


@dataclass(frozen=True, slots=True)
class Swapped:
    """What it takes to go on later as if nothing had happened: the state row, keys and values, all on the host."""

    row: Row
    keys_and_values: tuple[Tensor, Tensor]

    @property
    def num_pages(self) -> int:
        """Pages that it owned."""
        return self.keys_and_values[0].shape[1]


@dataclass(eq=False)
class Sequence:
    """A request and how far the host knows it to be.

    Attributes:
        request: what was asked.
        arrival: number of its arrival; older ones go first.
        priority: higher ones go before all that are lower.
        on_block: called after each finished block, the last included.
        slot: its row of the device's state while it is admitted.
        pages: those it owns, in the order of its positions.
        num_prefilled: positions whose keys and values are on their way into the cache.
        swapped: set while it is preempted.
        is_cancelled: nobody waits for it any more.
        rows: the reports of its finished blocks, in order.
        admitted_at, over_at: seconds of `time.perf_counter`: its first admission, and when its last block was known.
    """

    request: Request
    arrival: int
    priority: int = 0
    on_block: OnBlock | None = None
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    swapped: Swapped | None = None
    is_cancelled: bool = False
    rows: list[np.ndarray] = field(default_factory=list)
    admitted_at: float | None = None
    over_at: float | None = None

    def __post_init__(self) -> None:
        request = self.request
        self.prefix_keys = prefix_keys(request.prompt_ids, request.prefill_length, request.block_size)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts those that go first to the front."""
        return -self.priority, self.arrival

    @property
    def is_prefilled(self) -> bool:
        """Whether it decodes, or could."""
        return self.num_prefilled >= self.request.prefill_length

    @property
    def is_over(self) -> bool:
        """Whether its last block is known."""
        return bool(self.rows) and bool(self.rows[-1][Report.EVENTS] & Event.IS_OVER)

    def take_in(self, row: np.ndarray) -> None:
        """The report of a finished block has come."""
        self.rows.append(row)
        if self.is_over:
            self.over_at = time.perf_counter()

    def num_pages_to_start(self) -> int:
        """Pages that admission asks for: what it had, or its prompt's and the first blocks'."""
        if self.swapped is not None:
            return self.swapped.num_pages
        return num_pages_for(min(self.request.num_positions, self.request.prefill_length + 2 * self.request.block_size))

    def generation(self) -> Generation:
        """The result of a request that is over."""
        assert self.admitted_at is not None
        assert self.over_at is not None
        request = self.request
        last = self.rows[-1]
        has_failed = bool(last[Report.EVENTS] & Event.FAILED)
        tokens, steps, confidences = self._response()
        if has_failed:
            length = int(np.argmax(steps == 0)) if (steps == 0).any() else len(steps)  # what it has so far
            tokens, steps, confidences = tokens[:length], steps[:length], confidences[:length]
        return request.generation(
            tokens.tolist(),
            steps.tolist(),
            confidences.tolist(),
            int(last[Report.NUM_FORWARDS]),
            self.over_at - self.admitted_at,
            NOT_FINITE if has_failed else None,
        )

    def newest_block(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, reveal steps and confidences of the last finished block, without the prompt's left-over tokens."""
        return self._columns(self.rows[-1:], is_first=len(self.rows) == 1)

    def _response(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, reveal steps and confidences of the finished blocks, without the prompt's left-over tokens."""
        return self._columns(self.rows, is_first=True)

    def _columns(self, rows: list[np.ndarray], is_first: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        blocks = np.stack(rows)[:, Report.HEAD :].reshape(len(rows), 3, self.request.block_size)
        flat = np.ascontiguousarray(blocks.transpose(1, 0, 2)).reshape(3, -1)
        left_over = self.request.prompt_length - self.request.prefill_length if is_first else 0
        tokens, steps, bits = flat[:, left_over:]
        return tokens, steps, bits.view(np.float32)

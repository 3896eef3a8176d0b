"""What passes between the callers of an `AsyncEngine` and its worker: requests in, blocks out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from t3d.engine.continuous.sequence import Sequence
from t3d.engine.continuous.steps import Report
from t3d.engine.request import Request
from t3d.types import Generation


@dataclass(frozen=True, slots=True)
class Block:
    """A finished block of a response: its new tokens, and when and how surely each was revealed.

    Attributes:
        token_ids, reveal_steps, confidences: as in `Generation`, at most B of each.
        num_forwards: of the model for this request so far, prefill included.
        seconds: since the request's admission.
        generation: the whole result, with the last block.
    """

    token_ids: list[int]
    reveal_steps: list[int]
    confidences: list[float]
    num_forwards: int
    seconds: float
    generation: Generation | None = None


class Ticket:
    """A request on its way through the worker, and the way back to its caller.

    Attributes:
        request, priority: what was asked.
        sequence: set once the core has it.
        is_cancelled: its caller has left.
    """

    def __init__(self, request: Request, priority: int) -> None:
        self.request = request
        self.priority = priority
        self.sequence: Sequence | None = None
        self.is_cancelled = False
        self._num_sent = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Block | Exception] = asyncio.Queue()

    def on_block(self, sequence: Sequence) -> None:
        """Tell the caller of a block; called by the worker."""
        tokens, steps, confidences = (each.tolist() for each in sequence.newest_block())
        generation = sequence.generation() if sequence.is_over else None
        if generation is not None:  # which knows where the response was cut
            length = len(generation.token_ids) - self._num_sent
            tokens, steps, confidences = tokens[:length], steps[:length], confidences[:length]
        self._num_sent += len(tokens)
        assert sequence.admitted_at is not None
        seconds = time.perf_counter() - sequence.admitted_at
        num_forwards = int(sequence.rows[-1][Report.NUM_FORWARDS])
        self.send(Block(tokens, steps, confidences, num_forwards, seconds, generation))

    def send(self, event: Block | Exception) -> None:
        """Hand an event over to the caller's loop; called by the worker."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended, and its callers with it; the other callers' have not
            self.is_cancelled = True

    async def receive(self) -> Block:
        """The next event."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

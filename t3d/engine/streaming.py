"""Decoding for many callers at once: a finished block is an event.

One thread steps the device; callers live in asyncio. Requests of the same block size run together; one of another size
waits until those before it are through.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import torch

from t3d import models
from t3d.engine.continuous.core import Core
from t3d.engine.continuous.decoder import why_unsupported
from t3d.engine.continuous.memory import plan_budget
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.request import Request, check_request
from t3d.engine.tickets import Block, Ticket
from t3d.errors import RequestError, WorkError
from t3d.models import BlockDiffusionModel
from t3d.types import Decoding, Generation

PREFILL_TOKENS = 2**11
"""Between two steps; a longer prompt must not stop the streams of others for long."""
IDLE_SECONDS = 0.5
"""How often an idle worker looks whether it shall end."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is.

    Attributes:
        num_running: requests in the batch.
        num_waiting: requests that wait, or were swapped out.
        share_of_pages_in_use: of the memory for keys and values, 0 .. 1.
    """

    num_running: int
    num_waiting: int
    share_of_pages_in_use: float


class AsyncEngine:
    """Streams of blocks for any number of callers.

    Args:
        model: one that the continuous backend can run.
        stop_token_ids: ids that end every response; None takes the model's.
        max_batch_size: requests decoded together; None is 256.
        max_positions: of the longest request, prompt and response; None is the model's own limit. Fewer if memory holds
            no more.
        memory_gib: that the process may hold on the device, weights included; None is nine tenths of what is there for
            it.
        prefill_tokens: prompt tokens of one forward between two steps.
        num_stop_tokens: room for so many ids that end a response, the model's included. A request with more of them
            waits until all others are through.
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        stop_token_ids: Tokens[int] | None = None,
        max_batch_size: int | None = None,
        max_positions: int | None = None,
        memory_gib: float | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        num_stop_tokens: int = 0,
    ) -> None:
        reason = why_unsupported(model)
        if reason is not None:
            raise RequestError(f"the continuous backend cannot run this model: {reason}")
        if model.sharding is not None:
            raise RequestError("streams come from one process: load the model without a mesh")
        self.model = model
        self.stop_token_ids = models.stop_token_ids(model, None) if stop_token_ids is None else stop_token_ids
        self._max_batch_size = max_batch_size
        self._max_positions = max_positions or model.config.max_position_embeddings
        self._memory_gib = memory_gib
        self._prefill_tokens = prefill_tokens
        self._num_stop_tokens = num_stop_tokens
        self._worker = _Worker(self._make_core, model.device)
        self._worker.start()

    async def stream(
        self, prompt_ids: Tokens[int], decoding: Decoding | None = None, seed: int | None = None, priority: int = 0
    ) -> AsyncGenerator[Block, None]:
        """Decode one prompt; yields its blocks as they finish, the last with the whole result.

        Who stops listening cancels the request: close the iterator (`aclosing`), and its slot and memory are freed.

        Args:
            prompt_ids: token ids.
            decoding: settings; None is `Decoding()`.
            seed: None takes the settings'.
            priority: higher ones go before lower ones, and may push them out for a while.

        Raises:
            RequestError: a wrong request.
            WorkError: the worker has ended.
        """
        ticket = Ticket(self.check(prompt_ids, decoding, seed), priority)
        self._worker.enqueue(ticket)
        try:
            while True:
                block = await ticket.receive()
                yield block
                if block.generation is not None:
                    return
        finally:
            ticket.is_cancelled = True  # means nothing to one that is over

    async def generate(
        self, prompt_ids: Tokens[int], decoding: Decoding | None = None, seed: int | None = None, priority: int = 0
    ) -> Generation:
        """`stream`, for those who only want the result."""
        async for block in self.stream(prompt_ids, decoding, seed, priority):
            if block.generation is not None:
                return block.generation
        raise WorkError("the engine was closed before the response was complete")

    def check(self, prompt_ids: Tokens[int], decoding: Decoding | None = None, seed: int | None = None) -> Request:
        """The request that `stream` would run, with nothing run yet.

        Raises:
            RequestError: a wrong request, or one that the present memory could never hold.
        """
        decoding = decoding or Decoding()
        chosen_seed = decoding.seed if seed is None else seed
        request = check_request(0, prompt_ids, decoding, chosen_seed, self.stop_token_ids, self.model.config)
        self._worker.check(request)
        return request

    @property
    def max_positions(self) -> int:
        """Of the longest request: what was asked for until the first request, then what memory holds."""
        return min(self._max_positions, self._worker.max_positions or self._max_positions)

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, or its worker has failed."""
        return self._worker.has_ended

    def load(self) -> Load:
        """How busy the engine is."""
        return self._worker.load()

    def close(self) -> None:
        """Stop the worker; open streams end with a `WorkError`."""
        self._worker.stop()

    def _make_core(self, block_size: int, num_stop_tokens: int) -> Core:
        budget = plan_budget(
            self.model,
            block_size,
            self._max_positions,
            self._max_batch_size,
            self._memory_gib,
            self._prefill_tokens,
            may_shorten=True,
        )
        return Core(self.model, block_size, budget, max(num_stop_tokens, self._num_stop_tokens))


class _Worker(threading.Thread):
    """Steps a core for whoever is in line.

    Attributes:
        has_ended: nothing is taken in any more.
    """

    def __init__(self, make_core: Callable[[int, int], Core], device: torch.device) -> None:
        super().__init__(name="t3d-engine", daemon=True)
        self._device = device
        self._inbox: queue.Queue[Ticket] = queue.Queue()
        self.has_ended = False
        self._entrance = threading.Lock()  # over both: nothing comes in behind the last look into the inbox
        self._make_core = make_core
        self._core: Core | None = None
        self._line: deque[Ticket] = deque()
        self._open: set[Ticket] = set()
        self._num_arrivals = 0
        self._shall_stop = threading.Event()

    def enqueue(self, ticket: Ticket) -> None:
        """Put a ticket in; it will be answered.

        Raises:
            WorkError: the worker has ended.
        """
        with self._entrance:
            if self.has_ended:
                raise WorkError("the engine was closed, or its worker has failed")
            self._inbox.put(ticket)

    def stop(self) -> None:
        """End after the present step."""
        self._shall_stop.set()
        self.join()

    @property
    def max_positions(self) -> int | None:
        """Of the longest request that the core has room for; None while there is no core."""
        core = self._core
        return core.budget.num_positions if core is not None else None

    def check(self, request: Request) -> None:
        """Raise a `RequestError` if the present core could never run a request of its block size."""
        core = self._core
        if core is not None and core.takes(request):
            core.check(request)

    def load(self) -> Load:
        """How busy the core is, and how long the line."""
        core, in_line = self._core, len(self._line) + self._inbox.qsize()
        if core is None:
            return Load(0, in_line, 0.0)
        return Load(core.num_running, core.num_waiting + in_line, core.share_of_pages_in_use)

    def run(self) -> None:
        """Take requests in and step, until stopped or broken."""
        reason, cause = "the engine was closed", None
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # of this thread: graphs and events are made on the current one
            while not self._shall_stop.is_set():
                self._take_in()
                self._step()
        except Exception as error:  # nobody may wait for ever
            reason, cause = f"the engine's worker failed: {error}", error
        with self._entrance:
            self.has_ended = True
            while not self._inbox.empty():
                self._line.append(self._inbox.get_nowait())
        for ticket in {*self._open, *self._line}:
            failure = WorkError(reason)  # each its own: one that several raise gathers all their tracebacks
            failure.__cause__ = cause
            ticket.send(failure)

    def _take_in(self) -> None:
        """Queue what has come; wait for something when there is nothing else to do."""
        is_idle = not self._line and not self._open and (self._core is None or not self._core.has_work)
        try:
            if is_idle:
                self._line.append(self._inbox.get(timeout=IDLE_SECONDS))
            while True:
                self._line.append(self._inbox.get_nowait())
        except queue.Empty:
            pass

    def _step(self) -> None:
        self._submit()
        for ticket in [ticket for ticket in self._open if ticket.is_cancelled]:
            assert self._core is not None
            assert ticket.sequence is not None
            self._core.cancel(ticket.sequence)
            self._open.discard(ticket)
        if self._core is not None and self._core.has_work:
            self._core.step()
            self._open -= {ticket for ticket in self._open if ticket.sequence is not None and ticket.sequence.is_over}

    def _submit(self) -> None:
        """Hand the core those at the front of the line that it can run beside what it runs already."""
        while self._line:
            ticket = self._line[0]
            if ticket.is_cancelled:
                self._line.popleft()
                continue
            if not self._core_suits(ticket.request):
                return
            self._line.popleft()
            self._start(ticket)

    def _core_suits(self, request: Request) -> bool:
        """Whether the core can take a request in; makes one that can if nothing runs."""
        num_stop_tokens = len(request.stop_token_ids)
        if self._core is None or not self._core.takes(request):
            if self._core is not None and self._core.has_work:
                return False
            self._core = None  # frees its memory before the next is planned
            self._core = self._make_core(request.block_size, num_stop_tokens)
        return True

    def _start(self, ticket: Ticket) -> None:
        assert self._core is not None
        self._num_arrivals += 1
        ticket.sequence = Sequence(ticket.request, self._num_arrivals, ticket.priority, ticket.on_block)
        try:
            self._core.submit(ticket.sequence)
        except RequestError as error:
            ticket.send(error)
            return
        self._open.add(ticket)

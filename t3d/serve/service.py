"""Jobs through engines: admission, time limits, and an end for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from t3d.serve.asking import asks_of
from t3d.serve.errors import ApiError
from t3d.serve.jobs import Job
from t3d.serve.metrics import Metrics
from t3d.serve.models import ServedModel
from t3d.serve.prompting import prompts_of_chat, prompts_of_completion
from t3d.serve.protocol import ChatRequest, CompletionRequest
from t3d.serve.writing import Piece, write

RETRY_SECONDS = 1
"""What a client is told to wait when the line is full."""
SILENT_SECONDS = 10.0
"""Proxies take a connection on which nothing happens for dead, many of them after half a minute."""


class Service:
    """Served models and the requests that run on them. All of it lives in one event loop.

    Attributes:
        models: by name.
        metrics: what has happened.
        is_ending: no more requests are let in.

    Args:
        models: at least one.
        max_waiting: answers of one model that may wait beside those that are decoded.
        request_timeout: seconds that a request may take.
    """

    def __init__(self, models: Sequence[ServedModel], max_waiting: int, request_timeout: float) -> None:
        self.models = {model.name: model for model in models}
        self.metrics = Metrics(models, self)
        self.is_ending = False
        self._max_waiting = max_waiting
        self._request_timeout = request_timeout
        self._num_open = dict.fromkeys(self.models, 0)
        self._waits: set[asyncio.Timeout] = set()
        self._is_out_of_time = False

    # --- asking ---

    @property
    def is_healthy(self) -> bool:
        """Whether requests are let in and every engine works."""
        return not self.is_ending and not any(model.engine.has_ended for model in self.models.values())

    def num_open(self, model: ServedModel) -> int:
        """Answers of a model that were let in and are not over."""
        return self._num_open[model.name]

    def find(self, name: str) -> ServedModel:
        """A served model.

        Raises:
            ApiError: 404.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"model {name[:100]!r} is not served here: use {known}", "model", "model_not_found")
        return self.models[name]

    # --- running ---

    async def job_for(self, request: CompletionRequest | ChatRequest) -> Job:
        """What a request comes to; nothing of it runs yet.

        Raises:
            ApiError, RequestError: it cannot be had.
        """
        model = self.find(request.model)
        if isinstance(request, ChatRequest):
            prompts = await prompts_of_chat(request, model)
        else:
            prompts = await prompts_of_completion(request, model)
        return Job(request, model, prompts, asks_of(request, prompts, model))

    @contextmanager
    def admitted(self, job: Job) -> Iterator[None]:
        """Hold room for a job's answers.

        Raises:
            ApiError: 429 if there is none, 503 if the server ends, 400 if there never is.
        """
        name, count = job.model.name, len(job.asks)
        room = job.model.max_batch_size + self._max_waiting
        if self.is_ending:
            raise ApiError(503, "the server is shutting down: try again later or elsewhere", code="shutting_down")
        if count > room:
            raise ApiError(400, f"the request asks for {count} answers and the server holds {room}: ask for fewer", "n")
        if self._num_open[name] + count > room:
            raise ApiError(
                429,
                f"model {name} has as many requests waiting as it takes: try again later",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._num_open[name] += count
        try:
            yield
        finally:
            self._num_open[name] -= count

    async def run(self, job: Job) -> AsyncGenerator[tuple[int, Piece] | None, None]:
        """The pieces of all of a job's answers, each with the index of its choice, as they come.

        None whenever nothing has come for `SILENT_SECONDS`. Who closes the iterator cancels what still runs.

        Raises:
            ApiError: 504 when the time is up, 503 when the server's is.
            WorkError: an engine has failed.
        """
        name, started = job.model.name, time.perf_counter()
        self.metrics.on_prompts(name, sum(map(len, job.prompts)))
        deadline = asyncio.get_running_loop().time() + self._request_timeout
        num_tokens = [0] * len(job.asks)
        num_running, has_any = len(job.asks), False
        async with aclosing(_merged([write(job.model.engine, job.model.decode, ask) for ask in job.asks])) as pieces:
            while num_running:
                item = await self._next(pieces, deadline)
                if item is None:
                    yield None
                    continue
                index, piece = item
                seconds = time.perf_counter() - started
                if not has_any:
                    self.metrics.on_first_block(name, seconds)
                has_any = True
                num_tokens[index] += len(piece.token_ids)
                if piece.end is not None:
                    num_running -= 1
                    self.metrics.on_answer(name, num_tokens[index], piece.end.num_forwards)
                if not num_running:
                    self.metrics.on_last_block(name, seconds)
                yield index, piece

    async def _next(
        self, pieces: AsyncGenerator[tuple[int, Piece] | None, None], deadline: float
    ) -> tuple[int, Piece] | None:
        if self._is_out_of_time:
            deadline = 0.0
        try:
            async with asyncio.timeout_at(deadline) as wait:
                self._waits.add(wait)
                try:
                    return await anext(pieces)
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if self._is_out_of_time:
                raise ApiError(
                    503, "the server was shut down before the answer was complete", code="shutting_down"
                ) from None
            raise ApiError(
                504,
                f"the request took longer than {self._request_timeout:g} seconds: ask for fewer tokens",
                code="timeout",
            ) from None

    # --- ending ---

    def begin_shutdown(self, seconds: float) -> None:
        """Let nothing more in; what still runs after so many seconds is answered by an error."""
        self.is_ending = True
        asyncio.get_running_loop().call_later(seconds, self._end_all)

    def close(self) -> None:
        """Stop the engines."""
        for model in self.models.values():
            model.close()

    def _end_all(self) -> None:
        self._is_out_of_time = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0.0)


async def _merged(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[tuple[int, Piece] | None, None]:
    """Items of several streams, each with its stream's place, as they come; the first error ends them all.

    None whenever nothing has come for `SILENT_SECONDS`.
    """
    items: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def forward(place: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait((place, item))
        except Exception as error:  # told to the one who reads
            items.put_nowait(error)

    tasks = [asyncio.create_task(forward(place, stream)) for place, stream in enumerate(streams)]
    try:
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    item = await items.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Who does which shard: handed out one by one, and handed out again when a worker is lost with one.

Pure bookkeeping: workers are numbers here, and a `Crew` says what happens to them.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from t3d.errors import WorkError

logger = logging.getLogger(__name__)

LOSSES_PER_SHARD = 3
"""A shard that so many workers were lost with is given up."""
RESTARTS_PER_WORKER = 3
"""So many workers are started in a lost one's place, for each there should be, without a shard finished in between."""
PATIENCE_SECONDS = 1800.0
"""That the first worker gets to be ready, and any later one while there is no other: it may fetch its model first."""
REMINDER_SECONDS = 60.0
"""So often people are told that no worker is ready."""

GreetingT = TypeVar("GreetingT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Ready(Generic[GreetingT]):
    """A worker waits for work; `greeting` is what it says of itself."""

    worker: int
    greeting: GreetingT


@dataclass(frozen=True, slots=True)
class Done(Generic[ResultT]):
    """A worker has finished the shard in its hands."""

    worker: int
    result: ResultT


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is no more.

    Attributes:
        worker: its number.
        reason: in one line.
        had_begun: whether it may have been at the shard in its hands, so that the shard may be what killed it; one that
            died while it had nothing to do is missed only when it is given something.
    """

    worker: int
    reason: str
    had_begun: bool = True


class Crew(Protocol[GreetingT, ResultT]):
    """Workers somewhere."""

    def hire(self) -> int:
        """Begin to start a worker, when there is room; returns its number."""

    def give(self, worker: int, shard: int) -> None:
        """Hand a shard to a ready worker."""

    def wait(self, seconds: float | None) -> Ready[GreetingT] | Done[ResultT] | Lost | None:
        """The next thing that happens; None if nothing does for so long."""


@dataclass(frozen=True, slots=True)
class Note:
    """For those who watch: what has become of a worker or a shard.

    Attributes:
        what: "ready", "given" and "done" are of workers; "lost" is too, and its shard will be given to another one;
            "given up" is of a shard, which was lost too often.
        worker: its number.
        shard: in its hands; None if it had none.
    """

    what: Literal["ready", "given", "done", "lost", "given up"]
    worker: int
    shard: int | None = None


class Dealer(Generic[GreetingT, ResultT]):
    """Deals shards to the workers of a crew.

    Args:
        crew: with nobody hired yet.
        num_workers: to have.
        watch: called with everything that happens.
    """

    def __init__(
        self, crew: Crew[GreetingT, ResultT], num_workers: int, watch: Callable[[Note], None] = lambda note: None
    ) -> None:
        self._crew, self._num_workers, self._watch = crew, num_workers, watch
        self._starting: set[int] = set()
        self._idle: list[int] = []
        self._hands: dict[int, int] = {}
        self._queue: deque[int] = deque()
        self._losses: Counter[int] = Counter()
        self._given_up: dict[int, str] = {}
        self._restarts = 0

    def first_greeting(self) -> GreetingT:
        """Hire everybody; what the first worker that is ready says of itself.

        Raises:
            WorkError: none can be started.
        """
        for _ in range(self._num_workers):
            self._starting.add(self._crew.hire())
        while True:
            event = self._next()
            if isinstance(event, Ready):
                return event.greeting

    def deal(self, shards: Iterable[int]) -> Iterator[tuple[int, ResultT]]:
        """Have shards done: each once, in any order, with its result.

        Raises:
            WorkError: a shard was given up, after all others are done; or no worker is left.
        """
        self._queue.extend(shards)
        while self._queue or self._hands:
            self._hand_out()
            event = self._next()
            if isinstance(event, Done):
                shard = self._hands.pop(event.worker)
                self._idle.append(event.worker)
                self._restarts = 0
                self._watch(Note("done", event.worker, shard))
                self._hand_out()  # the worker is busy again while the caller writes
                yield shard, event.result
        if self._given_up:
            listed = "; ".join(f"shard {shard} ({reason})" for shard, reason in sorted(self._given_up.items()))
            raise WorkError(
                f"{LOSSES_PER_SHARD} workers each were lost with {listed}: given up; all other shards are on disk, "
                "--resume tries again"
            )

    def _hand_out(self) -> None:
        while self._idle and self._queue:
            worker, shard = self._idle.pop(0), self._queue.popleft()
            self._hands[worker] = shard
            self._crew.give(worker, shard)
            self._watch(Note("given", worker, shard))

    def _next(self) -> Ready[GreetingT] | Done[ResultT] | Lost:
        """The next event; of who is ready and who is lost it is taken note here."""
        event = self._crew.wait(None) if self._idle or self._hands else self._first_sign()
        assert event is not None  # nothing limits the wait
        if isinstance(event, Ready):
            self._starting.remove(event.worker)
            self._idle.append(event.worker)
            self._watch(Note("ready", event.worker))
        elif isinstance(event, Lost):
            self._lose(event.worker, event.reason, event.had_begun)
        return event

    def _first_sign(self) -> Ready[GreetingT] | Done[ResultT] | Lost:
        """The next event while there is nobody but workers that start."""
        waited = 0.0
        while waited < PATIENCE_SECONDS:
            if (event := self._crew.wait(REMINDER_SECONDS)) is not None:
                return event
            waited += REMINDER_SECONDS
            logger.warning(
                "no worker is ready after %.0f s: has the cluster room (`ray status`)? Or it loads its model", waited
            )
        raise WorkError(f"no worker was ready within {waited:.0f} s; what is finished is on disk, --resume goes on")

    def _lose(self, worker: int, reason: str, had_begun: bool) -> None:
        self._starting.discard(worker)
        shard = self._hands.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        self._watch(Note("lost", worker, shard))
        fate = "it had no shard" if shard is None else self._take_back(worker, shard, reason, had_begun)
        more = self._restarts < RESTARTS_PER_WORKER * self._num_workers
        if more:
            self._restarts += 1
            self._starting.add(self._crew.hire())
        after = "another worker is started" if more else "no other is started: too many were lost in a row"
        logger.warning("worker %d was lost: %s; %s; %s", worker, reason, fate, after)
        if not (self._starting or self._idle or self._hands):
            raise WorkError(f"no worker is left: {reason}; what is finished is on disk, --resume goes on")

    def _take_back(self, worker: int, shard: int, reason: str, had_begun: bool) -> str:
        """A lost worker's shard goes to the next one; says what becomes of it."""
        self._losses[shard] += had_begun
        if self._losses[shard] < LOSSES_PER_SHARD:
            self._queue.appendleft(shard)
            return f"shard {shard} will be redone"
        self._given_up[shard] = reason
        self._restarts = 0
        self._watch(Note("given up", worker, shard))
        return f"shard {shard} is given up: {LOSSES_PER_SHARD} workers were lost with it"

"""Who runs: admission by priority and arrival, prefill in chunks, pages as contexts grow, preemption when they run out.

Host only: it decides, and the core moves the data. Preempting is never cutting short: a preempted request waits with
    all it had.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable

from t3d.engine.continuous.pages import PAGE_SIZE, PageAllocator, num_pages_for
from t3d.engine.continuous.sequence import Sequence

SLOTS_PER_ADMISSION = 64
"""A batch of so many slots waits for one of them to be free, one of twice as many for two."""


class Scheduler:
    """Requests that wait, and those in slots.

    Attributes:
        running: the admitted ones by slot.
    """

    def __init__(self, num_slots: int, num_pages: int) -> None:
        self.running: dict[int, Sequence] = {}
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._pages = PageAllocator(num_pages)

    # --- asking ---

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting) or bool(self.running)

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted, or preempted."""
        return len(self._waiting)

    def forget_prefixes(self) -> None:
        """Let no request that comes use what another one's prompt left behind."""
        self._pages.forget()

    @property
    def num_pages_in_use(self) -> int:
        """Pages that some request owns."""
        return self._pages.num_pages - 1 - self._pages.num_free

    def decoding(self) -> list[Sequence]:
        """Those admitted and prefilled."""
        return [sequence for sequence in self.running.values() if sequence.is_prefilled]

    def prefilling(self) -> list[Sequence]:
        """Those whose prompts are not in the cache yet, in the order of their admission."""
        return [sequence for sequence in self.running.values() if not sequence.is_prefilled]

    def next_waiting(self) -> Sequence | None:
        """Who would be admitted next."""
        while self._waiting and self._waiting[0][1].is_cancelled:
            heapq.heappop(self._waiting)
        return self._waiting[0][1] if self._waiting else None

    def should_gather(self) -> bool:
        """Whether to wait for more free slots: prompts prefilled together cost hardly more than one alone."""
        together = min(len(self._waiting), self._num_slots // SLOTS_PER_ADMISSION)
        return bool(self.running) and 0 < len(self._free_slots) < together

    def should_wait(self, sequence: Sequence) -> bool:
        """Whether the prompt page that a request would have to fill next is just being filled for another."""
        if sequence.swapped is not None or not self.prefilling():
            return False
        num_known = len(self._pages.known(sequence.prefix_keys))
        next_key = sequence.prefix_keys[num_known : num_known + 1]
        return bool(next_key) and any(next_key[0] in other.prefix_keys for other in self.prefilling())

    def fits(self, sequence: Sequence) -> bool:
        """Whether there is a slot and memory to start, with some left for those that run to grow."""
        known = self._pages.known(sequence.prefix_keys) if sequence.swapped is None else []
        fresh = sequence.num_pages_to_start() - len(known) + self._pages.num_idle(known)
        return bool(self._free_slots) and fresh + len(self.running) // 4 <= self._pages.num_free

    def victim_for(self, sequence: Sequence) -> Sequence | None:
        """The least of those that decode, if `sequence` goes before it by priority."""
        worst = self._worst(self.decoding())
        return worst if worst is not None and worst.priority < sequence.priority else None

    @staticmethod
    def _worst(sequences: Iterable[Sequence]) -> Sequence | None:
        return max(sequences, key=lambda sequence: sequence.order, default=None)

    def num_missing_pages(self, sequence: Sequence, num_positions: int) -> int:
        """Pages that an admitted request lacks before it may touch positions below `num_positions`."""
        wanted = num_pages_for(min(num_positions, sequence.request.num_positions))
        return max(0, wanted - len(sequence.pages))

    # --- deciding ---

    def submit(self, sequence: Sequence) -> None:
        """Let a request wait its turn."""
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def admit(self, sequence: Sequence) -> None:
        """Give the next waiting request its slot and pages; it shares those of a prompt that begins like its own."""
        assert heapq.heappop(self._waiting)[1] is sequence
        sequence.slot = self._free_slots.pop()
        sequence.admitted_at = sequence.admitted_at or time.perf_counter()
        self.running[sequence.slot] = sequence
        if sequence.swapped is None:
            shared = self._pages.known(sequence.prefix_keys)
            self._pages.share(shared)
            sequence.pages = shared + self._pages.take(sequence.num_pages_to_start() - len(shared))
            sequence.num_prefilled = len(shared) * PAGE_SIZE
        else:
            sequence.pages = self._pages.take(sequence.swapped.num_pages)

    def publish(self, sequence: Sequence) -> None:
        """Let others share the prompt pages of an admitted request that are filled, or will be before the next step."""
        count = min(len(sequence.prefix_keys), sequence.num_prefilled // PAGE_SIZE)
        self._pages.publish(sequence.pages[:count], sequence.prefix_keys[:count])

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Give an admitted request pages for positions below `num_positions`; False, and none, if there are too few."""
        missing = self.num_missing_pages(sequence, num_positions)
        if missing > self._pages.num_free:
            return False
        sequence.pages += self._pages.take(missing)
        return True

    def worst_decoding(self) -> Sequence:
        """Who is preempted first."""
        worst = self._worst(self.decoding())
        assert worst is not None
        return worst

    def remove(self, sequence: Sequence) -> None:
        """Take an admitted request's slot and pages."""
        assert sequence.slot is not None
        del self.running[sequence.slot]
        self._free_slots.append(sequence.slot)
        self._pages.give_back(sequence.pages)
        sequence.slot, sequence.pages = None, []

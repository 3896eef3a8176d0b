"""The loop: schedule, prefill, launch, and meanwhile look at what the step before has done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import PretrainedConfig

from t3d.engine.continuous.counters import Counters
from t3d.engine.continuous.decoder import Decoder, addresses
from t3d.engine.continuous.forecast import Forecast
from t3d.engine.continuous.kernels import Kernels, kernels_for
from t3d.engine.continuous.memory import Budget
from t3d.engine.continuous.pages import PAGE_SIZE, PagedCache, num_pages_for
from t3d.engine.continuous.prefill import Span
from t3d.engine.continuous.runner import Kind, Launch, Runner, samples_per_chunk
from t3d.engine.continuous.scheduler import Scheduler
from t3d.engine.continuous.sequence import Sequence, Swapped
from t3d.engine.continuous.state import Row, State
from t3d.engine.continuous.steps import Event, Report
from t3d.engine.request import Request
from t3d.errors import RequestError
from t3d.models import BlockDiffusionModel, mask_token_id, own_config


class Core:
    """Decodes requests of one block size; they come and go between any two steps.

    Args:
        model: one that `t3d.engine.continuous.decoder.why_unsupported` has nothing against.
        block_size: of all requests.
        budget: slots, pages, longest request.
        num_stop_tokens: the most that a request has.
        choose_step: called before each step with the slots that could take part; returns those that shall. For tests.
        choose_kernels: other than the fastest (see `kernels_for`).
    """

    def __init__(
        self,
        model: BlockDiffusionModel,
        block_size: int,
        budget: Budget,
        num_stop_tokens: int,
        choose_step: Callable[[np.ndarray], np.ndarray] | None = None,
        choose_kernels: Callable[[PretrainedConfig, int, int, torch.device], Kernels] | None = None,
    ) -> None:
        config, device = own_config(model), model.device
        self.budget = budget
        self.counters = Counters()
        self._block_size = block_size
        self._mask_token_id = mask_token_id(config)
        self._choose_step = choose_step
        self._cache = PagedCache(config, budget.num_pages, budget.num_slots, budget.num_positions, model.dtype, device)
        self._state = State(budget.num_slots, block_size, self._mask_token_id, num_stop_tokens, device)
        max_samples = samples_per_chunk(self._state, config.vocab_size)
        kernels = (choose_kernels or kernels_for)(config, block_size, max_samples, device)
        decoder = Decoder(model, self._cache, kernels.ops, budget.num_positions)
        self._weights = addresses(model)
        scale = config.head_dim**-0.5
        self._runner = Runner(decoder, self._cache, self._state, kernels, scale, config.vocab_size)
        self._scheduler = Scheduler(budget.num_slots, budget.num_pages)
        self._forecast = Forecast(budget.num_slots, block_size)
        self._under_way: Launch | None = None

    # --- asking ---

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return self._scheduler.has_work or self._under_way is not None

    @property
    def num_running(self) -> int:
        """Requests that are admitted."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that are not, or were preempted."""
        return self._scheduler.num_waiting

    @property
    def share_of_pages_in_use(self) -> float:
        """Of the memory for keys and values, 0 .. 1."""
        return self._scheduler.num_pages_in_use / max(1, self.budget.num_pages - 1)

    def serves(
        self, model: BlockDiffusionModel, block_size: int, num_slots: int, num_positions: int, num_stop_tokens: int
    ) -> bool:
        """Whether this core is idle and would do for requests like these."""
        return (
            not self.has_work
            and self._block_size == block_size
            and self.budget.num_slots >= num_slots
            and self.budget.num_positions >= num_positions
            and self._state.stop_tokens.shape[1] >= num_stop_tokens
            and self._weights == addresses(model)
        )

    def takes(self, request: Request) -> bool:
        """Whether a request could run beside those that do, given the memory."""
        return (
            self._block_size == request.block_size and len(request.stop_token_ids) <= self._state.stop_tokens.shape[1]
        )

    def check(self, request: Request) -> None:
        """Raise a `RequestError` if a request could never run here."""
        num_pages = num_pages_for(request.num_positions)
        if request.num_positions > self.budget.num_positions or num_pages > self.budget.num_pages - 1:
            room = min(self.budget.num_positions, (self.budget.num_pages - 1) * PAGE_SIZE)
            raise RequestError(
                f"prompt {request.index} and max_new_tokens take {request.num_positions} positions, and the engine's "
                f"memory holds {room}: shorten one of them, or give the engine more memory"
            )

    # --- what a caller does ---

    def submit(self, sequence: Sequence) -> None:
        """Let a request wait its turn."""
        self.check(sequence.request)
        self._scheduler.submit(sequence)

    def forget_prefixes(self) -> None:
        """The weights may have changed: keys and values of earlier prompts are of use to nobody."""
        self._scheduler.forget_prefixes()

    def cancel(self, sequence: Sequence) -> None:
        """Nobody waits for a request any more: it leaves at the next step."""
        sequence.is_cancelled = True

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Advance every running request by one denoising step; returns those now known to be over.

        The device starts its next step before the host reads what the last one did.
        """
        self._drop_cancelled()
        finished = self._admit()
        self._prefill()
        finished += self._make_room()
        before, self._under_way = self._under_way, self._launch()
        return finished + self._collect(before)

    # --- entering ---

    def _admit(self) -> list[Sequence]:
        """Let waiting requests in; returns those that finished while room was made."""
        finished: list[Sequence] = []
        if self._scheduler.should_gather():
            return finished
        while (sequence := self._scheduler.next_waiting()) is not None and not self._scheduler.should_wait(sequence):
            if self._scheduler.fits(sequence):
                self._enter(sequence)
                continue
            if self._scheduler.victim_for(sequence) is None:
                break
            finished += self._settle()
            victim = self._scheduler.victim_for(sequence)
            if victim is not None and not self._scheduler.fits(sequence):
                self._preempt(victim)
        return finished

    def _enter(self, sequence: Sequence) -> None:
        self._scheduler.admit(sequence)
        assert sequence.slot is not None
        self._cache.point(sequence.slot, sequence.pages)
        if sequence.swapped is not None:
            self._cache.write(sequence.pages, sequence.swapped.keys_and_values)
            self._start([sequence], [sequence.swapped.row])
            sequence.swapped = None
            self._scheduler.publish(sequence)
            return
        self.counters.num_shared_tokens += sequence.num_prefilled
        if sequence.is_prefilled:
            self._start([sequence], [self._state.new_row(sequence.request)])

    def _start(self, sequences: list[Sequence], rows: list[Row]) -> None:
        """Let prefilled requests decode, from these state rows."""
        if not sequences:
            return
        self._state.write([_slot(sequence) for sequence in sequences], rows)
        for sequence, row in zip(sequences, rows, strict=True):
            rule = sequence.request.decoding.rule
            self._forecast.enter(_slot(sequence), row, self._mask_token_id, rule)

    def _prefill(self) -> None:
        """Store one chunk of the prompts that wait for it, the oldest first."""
        room = max(self._block_size, self.budget.prefill_tokens // self._block_size * self._block_size)
        spans, stored = [], []
        for sequence in self._scheduler.prefilling():
            if room <= 0:
                break
            start = sequence.num_prefilled
            stop = min(sequence.request.prefill_length, start + room)
            spans.append(Span(_slot(sequence), start, np.asarray(sequence.request.prompt_ids[start:stop])))
            room -= stop - start
            sequence.num_prefilled = stop
            stored.append(sequence)
        if spans:
            self._cache.send()
            self._runner.prefill(spans)
            self.counters.num_prefills += 1
            self.counters.num_prefill_tokens += sum(len(span.tokens) for span in spans)
            for sequence in stored:
                self._scheduler.publish(sequence)
        complete = [sequence for sequence in stored if sequence.is_prefilled]
        self._start(complete, [self._state.new_row(sequence.request) for sequence in complete])

    # --- memory ---

    def _make_room(self) -> list[Sequence]:
        """Give every decoding request the pages of its next step, at the cost of the least of them if need be.

        Returns those that finished while room was made.
        """
        finished: list[Sequence] = []
        for sequence in sorted(self._scheduler.decoding(), key=lambda each: each.order):
            while sequence.slot is not None and not self._grow(sequence):
                if self._under_way is not None:
                    finished += self._settle()
                else:
                    self._preempt(self._scheduler.worst_decoding())
        return finished

    def _grow(self, sequence: Sequence) -> bool:
        """Pages for the block that the next step works on: a block further for a step whose report has not come."""
        blocks = 1 if self._under_way is None else 2
        num_positions = int(self._forecast.start[_slot(sequence)]) + blocks * self._block_size
        if not self._scheduler.num_missing_pages(sequence, num_positions):
            return True
        if not self._scheduler.grow(sequence, num_positions):
            return False
        self._cache.point(_slot(sequence), sequence.pages)
        return True

    def _settle(self) -> list[Sequence]:
        """Wait for the step under way; returns those that it finished."""
        launch, self._under_way = self._under_way, None
        return self._collect(launch)

    def _preempt(self, sequence: Sequence) -> None:
        """Swap a decoding request out; no step is under way."""
        slot = _slot(sequence)
        sequence.swapped = Swapped(self._state.read(slot), self._cache.read(sequence.pages))
        self._state.stop([slot])
        self._scheduler.remove(sequence)
        self._scheduler.submit(sequence)
        self.counters.num_preemptions += 1

    def _drop_cancelled(self) -> None:
        """Free what cancelled requests hold; one in prefill finishes that first, since others may share its pages."""
        for sequence in self._scheduler.decoding():
            if sequence.is_cancelled:
                self._state.stop([_slot(sequence)])
                self._scheduler.remove(sequence)

    # --- steps ---

    def _launch(self) -> Launch | None:
        """Start the next step of those that are not known to be over by then."""
        ahead = self._forecast
        if self._under_way is not None:
            ahead = ahead.after(self._under_way.slots[self._under_way.is_here()], self._under_way.shape)
        slots = np.array([_slot(sequence) for sequence in self._scheduler.decoding()], dtype=np.int64)
        slots = slots[~ahead.is_over[slots]]
        if self._choose_step is not None:
            slots = self._choose_step(slots)
        if len(slots) == 0:
            return None
        sequences = [self._scheduler.running[slot] for slot in slots.tolist()]
        decodings = [sequence.request.decoding for sequence in sequences]
        kind = Kind(
            rules=frozenset(decoding.rule for decoding in decodings),
            has_draws=any(decoding.temperature > 0 for decoding in decodings),
            has_filters=any(decoding.top_k > 0 or decoding.top_p < 1 for decoding in decodings),
        )
        self._cache.send()
        num_positions = int(ahead.start[slots].max()) + 2 * self._block_size
        return self._runner.launch(sequences, slots, ahead.shape(slots), kind, num_positions)

    def _collect(self, launch: Launch | None) -> list[Sequence]:
        """Take in what a step did; returns those that are over by it."""
        if launch is None:
            return []
        report = launch.report()
        events = report[:, Report.EVENTS]
        is_here = launch.is_here()
        self._count(launch.slots[is_here], report[is_here])
        self._forecast.correct(launch.slots[is_here], report[is_here])
        finished = []
        is_over = (events & int(Event.IS_OVER)) > 0
        for row in np.flatnonzero(((events & int(Event.FINISHED_BLOCK)) > 0) & is_here).tolist():
            sequence = launch.sequences[row]
            sequence.take_in(report[row])
            if is_over[row]:
                finished.append(sequence)
                if events[row] & Event.FAILED:
                    self._cache.clear(sequence.pages)
                self._scheduler.remove(sequence)
            if sequence.on_block is not None:
                sequence.on_block(sequence)
        return finished

    def _count(self, slots: np.ndarray, report: np.ndarray) -> None:
        """Add a report up; the forecast is still that of the step's start."""
        took_part = (report[:, Report.EVENTS] & Event.TOOK_PART) > 0
        slots, counters = slots[took_part], self.counters
        counters.num_steps += 1
        counters.num_rows += len(slots)
        counters.num_commits += int(self._forecast.must_commit[slots].sum())
        counters.num_masked += int(self._forecast.masked[slots].sum())
        counters.num_context += int((self._forecast.start[slots] + self._block_size).sum())


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot

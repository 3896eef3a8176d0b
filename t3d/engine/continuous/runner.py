"""Runs the device: whole steps as CUDA graphs, and prefill.

A step is one graph: lay out the forward, run the model, draw, reveal, report. The host gives its sizes and the slots,
    and gets
a report when it asks for it, which is a step later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from t3d.engine.continuous.decoder import Decoder
from t3d.engine.continuous.forecast import Shape, ladder, rounded
from t3d.engine.continuous.graphs import Eager, Graphs
from t3d.engine.continuous.kernels import Kernels
from t3d.engine.continuous.pages import PAGE_SIZE, PagedCache, num_pages_for
from t3d.engine.continuous.prefill import Prefill, Span
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.continuous.state import Field, Setting, State
from t3d.engine.continuous.steps import Work
from t3d.engine.sampling import Candidates, SamplingParams
from t3d.engine.sharded.agreeing import agreed_candidates
from t3d.kernels.ops import Attention

IGNORE_ENTROPY = frozenset({"sequential", "low_confidence_static", "low_confidence_dynamic"})
"""Rules known to look at confidences only."""
LOGITS_PER_CHUNK = 2**28
"""Numbers in the largest [positions, vocabulary] tensor."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a step has to be able to do; like its shape, a property of its graph.

    Attributes:
        rules: those that occur.
        has_draws: some request has a temperature.
        has_filters: some request has a top-k or top-p.
    """

    rules: frozenset[str]
    has_draws: bool
    has_filters: bool


class Launch:
    """A step under way.

    Attributes:
        sequences: who its rows are.
        slots: int64 [n] the slots that these have, on the host.
        shape: the room that it has.
    """

    def __init__(self, sequences: list[Sequence], slots: np.ndarray, shape: Shape, report: Tensor) -> None:
        self.sequences = sequences
        self.slots = slots
        self.shape = shape
        self._done: torch.cuda.Event | None = None
        if report.device.type == "cuda":
            self._report = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
            self._report.copy_(report, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._report = report

    def is_here(self) -> np.ndarray:
        """Whose rows these still are, bool [n]: a request may have left since, and another may have its slot."""
        rows = zip(self.sequences, self.slots.tolist(), strict=True)
        return np.array([sequence.slot == slot for sequence, slot in rows], dtype=bool)

    def report(self) -> np.ndarray:
        """What happened, int32 [n, columns of `Report`]; waits for the step."""
        if self._done is not None:
            self._done.synchronize()
        return self._report[: len(self.slots)].numpy()


class Runner:
    """One model on one device, for requests of one block size."""

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        state: State,
        kernels: Kernels,
        scale: float,
        vocab_size: int,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._state = state
        self._kernels = kernels
        self._scale = scale
        self._samples_per_chunk = samples_per_chunk(state, vocab_size)
        self._no_top_k = torch.zeros((), dtype=torch.int64, device=state.device)
        self._no_top_p = torch.ones((), device=state.device)
        self._sizes = ladder(state.num_slots)
        self._graphs = (Graphs() if decoder.sharding is None else Eager()) if state.device.type == "cuda" else None
        self._graph_slots: dict[int, Tensor] = {}
        self._prefill = Prefill(
            decoder, cache, self._graphs, kernels.prefill_half, state.block_size, scale, state.num_slots
        )

    def prefill(self, spans: list[Span]) -> None:
        """Store the keys and values of stretches of prompts."""
        self._prefill.run(spans)

    def launch(
        self, sequences: list[Sequence], slots: np.ndarray, shape: Shape, kind: Kind, num_positions: int
    ) -> Launch:
        """Start a step over slots, int64 [n], that has room for `shape`; no row sees beyond `num_positions`."""
        if self._graphs is None:
            num_pages = num_pages_for(num_positions)
            return Launch(sequences, slots, shape, self._step(torch.from_numpy(slots), shape, kind, num_pages))
        shape = rounded(shape, self._sizes, self._state.block_size)
        padded = np.full(shape.rows, self._state.idle_slot)
        graph_slots = self._slots_of_graphs(shape.rows)
        num_pages = self._cache.table.shape[1]

        def step() -> Tensor:
            return self._step(graph_slots, shape, kind, num_pages)

        graph_slots.fill_(self._state.idle_slot)  # should the graph be made now: idle slots change nothing
        self._graphs.make((shape, kind), step)
        padded[: len(slots)] = slots
        graph_slots.copy_(torch.from_numpy(padded).pin_memory(), non_blocking=True)
        report = self._graphs.replay((shape, kind), step)
        assert report is not None
        return Launch(sequences, slots, shape, report)

    def _slots_of_graphs(self, num_rows: int) -> Tensor:
        """Where graphs of so many rows read their slots, int64 [n]."""
        if num_rows not in self._graph_slots:
            self._graph_slots[num_rows] = torch.empty(num_rows, dtype=torch.int64, device=self._state.device)
        return self._graph_slots[num_rows]

    def _step(self, slots: Tensor, shape: Shape, kind: Kind, num_pages: int) -> Tensor:
        """The whole step, int64 [n] -> its report."""
        state, kernels = self._state, self._kernels
        work = kernels.begin(state, slots, self._cache.table, PAGE_SIZE, shape.commits, shape.samples)
        num_splits = kernels.decode_splits(shape.rows)
        attention = self._attention(work.tiles, state.block_size, num_splits, num_pages)
        hidden = self._decoder.hidden(work.tokens, work.positions, work.places, attention)
        candidates = self._draw(hidden, work, kind)
        return kernels.finish(state, work, candidates, kind.rules)

    def _draw(self, hidden: Tensor, work: Work, kind: Kind) -> Candidates:
        """LM head and drawing at the sampling places only: float [N, hidden size] -> m candidates."""
        params = self._sampling_params(work, kind)
        needs_entropy = not kind.rules <= IGNORE_ENTROPY
        hidden = hidden[work.sample_tokens]
        parts = []
        for start in range(0, len(hidden), self._samples_per_chunk):
            stop = min(start + self._samples_per_chunk, len(hidden))
            logits = self._decoder.logits(hidden[start:stop])
            num_samples = work.num_samples - start if start else work.num_samples
            part = params.slice(start, stop)
            parts.append(self._kernels.draw(logits, part, self._state.mask_token_id, num_samples, needs_entropy))
        candidates = parts[0] if len(parts) == 1 else Candidates.concatenate(parts)
        return agreed_candidates(candidates, self._decoder.sharding)

    def _sampling_params(self, work: Work, kind: Kind) -> SamplingParams:
        settings, slots = self._state.settings, work.sample_slots
        top_k, top_p = self._no_top_k.expand(len(slots)), self._no_top_p.expand(len(slots))
        if kind.has_filters:
            top_k, top_p = self._state.numbers[slots, Field.TOP_K], settings[slots, Setting.TOP_P]
        temperature = settings[slots, Setting.TEMPERATURE]
        return SamplingParams(temperature, top_k, top_p, work.sample_keys, kind.has_draws, kind.has_filters)

    def _attention(self, tiles: Tensor, half: int, num_splits: int, num_pages: int) -> Attention:
        return Attention(tiles, half, self._state.block_size, self._scale, num_splits, num_pages)


def samples_per_chunk(state: State, vocab_size: int) -> int:
    """Sampling places that go through the LM head together."""
    return min(state.num_slots * state.block_size, max(state.block_size, LOGITS_PER_CHUNK // vocab_size))

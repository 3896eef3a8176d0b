"""The fast engine: cores for the block sizes that requests have, and batches of requests through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from t3d.engine.continuous.core import Core
from t3d.engine.continuous.counters import Counters
from t3d.engine.continuous.memory import MAX_SLOTS, PREFILL_TOKENS, plan_budget
from t3d.engine.continuous.sequence import OnBlock, Sequence
from t3d.engine.request import Request
from t3d.models import BlockDiffusionModel
from t3d.types import Generation


class ContinuousEngine:
    """Decodes requests with continuous batching.

    A core (its pages, its graphs) is kept from call to call and made anew when requests of another block size or longer
    ones come.

    Args:
        model: one that `t3d.engine.continuous.decoder.why_unsupported` has nothing against.
        max_batch_size: requests decoded together; None is 256.
        memory_gib: that the process may hold on the device, weights included; None is nine tenths of what is there for
            it.
        prefill_tokens: prompt tokens of one forward between two steps: more is faster, less keeps streams smooth.
        on_block: called after each finished block of a request.
    """

    name = "continuous"

    def __init__(
        self,
        model: BlockDiffusionModel,
        max_batch_size: int | None = None,
        memory_gib: float | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        on_block: OnBlock | None = None,
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._memory_gib = memory_gib
        self._prefill_tokens = prefill_tokens
        self._on_block = on_block
        self._core: Core | None = None

    @property
    def counters(self) -> dict[str, int]:
        """What the present core has done (see `Counters`)."""
        return asdict(self._core.counters if self._core else Counters())

    def run(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        """Decode requests that share a block size; yields each as it finishes.

        They share prefixes among each other, and with no earlier call's: the model may have been trained in between,
        and what a call gives does not depend on which calls came before.
        """
        core = self.core_for(requests)
        core.forget_prefixes()
        for arrival, request in enumerate(requests):
            core.submit(Sequence(request, arrival, on_block=self._on_block))
        while core.has_work:
            for sequence in core.step():
                yield sequence.request, sequence.generation()

    def core_for(self, requests: list[Request]) -> Core:
        """A core that has room for each of these requests, which share a block size."""
        block_size = requests[0].block_size
        longest = max(request.num_positions for request in requests)
        num_stop_tokens = max(len(request.stop_token_ids) for request in requests)
        slots = min(self._max_batch_size or MAX_SLOTS, len(requests))
        if self._core is not None and not self._core.serves(self._model, block_size, slots, longest, num_stop_tokens):
            self._core = None  # frees its memory before the next is planned
        if self._core is None:
            budget = plan_budget(self._model, block_size, longest, slots, self._memory_gib, self._prefill_tokens)
            self._core = Core(self._model, block_size, budget, num_stop_tokens)
        return self._core

"""The plain engine's loop: a block of every running request at a time."""

from __future__ import annotations

from collections.abc import Iterator

from t3d.engine.plain.attention import grouped
from t3d.engine.plain.batch import Batch
from t3d.engine.plain.cache import rows_that_fit
from t3d.engine.plain.runner import ModelRunner, UncachedRunner, UnfusedRunner
from t3d.engine.plain.scheduler import Scheduler
from t3d.engine.request import Request
from t3d.engine.sharded.agreeing import agreed_limit
from t3d.models import BlockDiffusionModel, mask_token_id, own_config
from t3d.types import Generation


class PlainEngine:
    """Decodes requests with the model's own layers, on any device.

    Args:
        model: any that transformers runs.
        max_batch_size: requests decoded together; None takes what memory allows, at most 512.
        fused_commit: False pays a forward more per finished block, for comparison.
        use_cache: False recomputes whole sequences at every step, for comparison.
    """

    name = "plain"

    def __init__(
        self,
        model: BlockDiffusionModel,
        max_batch_size: int | None = None,
        fused_commit: bool = True,
        use_cache: bool = True,
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._runner_class = UncachedRunner if not use_cache else ModelRunner if fused_commit else UnfusedRunner

    def run(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        """Decode requests that share a block size; yields each as it finishes."""
        with grouped(self._model):
            config = self._model.config
            longest = max(request.num_positions for request in requests)
            limit = self._max_batch_size or self._rows_that_fit(longest)
            batch = Batch(requests, min(limit, len(requests)), mask_token_id(config), self._model.device)
            scheduler = Scheduler(requests, batch)
            runner = self._runner_class(self._model, batch)
            while scheduler.has_work:
                yield from step(scheduler, batch, runner)

    def _rows_that_fit(self, num_positions: int) -> int:
        model = self._model
        return agreed_limit(rows_that_fit(own_config(model), num_positions, model.dtype, model.device), model.sharding)


def step(scheduler: Scheduler, batch: Batch, runner: ModelRunner) -> list[tuple[Request, Generation]]:
    """Decode one block of every running request: schedule, run, reveal, commit. Returns those that finished."""
    newcomers = batch.admit(scheduler.next_requests())
    runner.prefill(newcomers)

    slots = batch.running()
    step_in_block = 0
    while len(slots) > 0:
        is_masked = batch.block_is_masked(slots)
        candidates = runner.denoise(slots, is_masked)
        batch.reveal(slots, is_masked, candidates, step_in_block)
        slots = batch.unfinished(slots)
        step_in_block += 1

    over = batch.advance()
    finished = list(zip([batch.requests[slot] for slot in over.tolist()], batch.generations(over), strict=True))
    runner.clear(over[batch.has_failed[over]])
    runner.move(*batch.release(over))
    runner.commit(batch.running())
    return finished

"""Runs the model for a batch: prefill, one denoising forward, commit. The only module that calls it.

Shape legend: N rows, Q query tokens a row, B block size, L visible positions, M masked positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.engine.plain.attention import decoding_mask
from t3d.engine.plain.batch import Batch
from t3d.engine.plain.cache import KVCache
from t3d.engine.sampling import Candidates, draw_candidates
from t3d.engine.sharded.agreeing import agreed_candidates
from t3d.models import BlockDiffusionModel, own_config

PREFILL_TOKENS = 2**15
"""Prompt tokens, padding included, of one prefill forward."""
CPU_PREFILL_TOKENS = 2**12
"""The same on the CPU, where activations that stay in its caches make prefill three times as fast."""
LOGITS_PER_CHUNK = 2**25
"""Numbers in the largest [positions, vocabulary] tensor."""


class ModelRunner:
    """The model with a KV cache. A finished block is committed by the next block's first forward.

    That forward has 2B query positions: the finished block with its final tokens, and the active one. It is exact,
    because under the block-causal mask the finished block's queries do not see the active block.
    """

    def __init__(self, model: BlockDiffusionModel, batch: Batch) -> None:
        self.model = model
        self.batch = batch
        self.cache = KVCache(own_config(model), batch.num_slots, batch.num_positions, model.dtype, model.device)

    def prefill(self, slots: Tensor) -> None:
        """Store the whole blocks of the prompts of newly admitted requests, int64 [K]."""
        if len(slots) == 0:
            return
        longest = int(self.batch.block_start[slots].max())
        limit = CPU_PREFILL_TOKENS if slots.device.type == "cpu" else PREFILL_TOKENS
        for part in slots.split(max(1, limit // max(1, longest))):
            self._prefill_together(part)

    def _prefill_together(self, slots: Tensor) -> None:
        lengths = self.batch.block_start[slots]
        slots, lengths = slots[lengths > 0], lengths[lengths > 0]
        if len(slots) == 0:
            return
        positions = torch.arange(int(lengths.max()), device=slots.device).expand(len(slots), -1)
        self.batch.num_forwards[slots] += 1
        self._forward(slots, positions, is_padding=positions >= lengths[:, None])

    def denoise(self, slots: Tensor, is_masked: Tensor) -> Candidates:
        """One forward over the active blocks of `slots`, int64 [N]; a candidate for each mask in bool [N, B]."""
        self.batch.num_forwards[slots] += 1
        rows = self._rows_to_run(slots)
        hidden = self._forward_active_blocks(rows)
        return self._draw(slots, hidden if rows is slots else hidden[slots], is_masked)

    def _rows_to_run(self, slots: Tensor) -> Tensor:
        """`slots`, or all that run when most do: an idle row costs less than copying the cache of those that are not.

        Idle rows only rewrite keys and values of their own active block, and nobody reads their logits.
        """
        return self.batch.running() if 2 * len(slots) > self.batch.num_running else slots

    def _forward_active_blocks(self, slots: Tensor) -> Tensor:
        """Final hidden states of the active blocks, float [N, B, hidden]; commits the blocks before on the way."""
        block_size = self.batch.block_size
        positions = self.batch.block_positions(slots)
        uncommitted = self.batch.has_uncommitted_block[slots]
        if not bool(uncommitted.any()):
            return self._forward(slots, positions)
        positions = torch.cat([positions - block_size, positions], dim=1)
        is_padding = ~uncommitted[:, None] & (positions < self.batch.block_start[slots, None])
        hidden = self._forward(slots, positions, is_padding)
        self.batch.has_uncommitted_block[slots] = False
        return hidden[:, block_size:]

    def commit(self, slots: Tensor) -> None:
        """Nothing to do: the next block's first forward does it."""

    def move(self, source: Tensor, target: Tensor) -> None:
        """Follow requests from slots `source` to slots `target`, int64 [K] both."""
        self.cache.move(source, target)

    def clear(self, slots: Tensor) -> None:
        """Forget requests whose keys and values may not be finite, int64 [K]."""
        self.cache.clear(slots)

    def _forward(self, slots: Tensor, positions: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Run the decoder on some positions of some slots and store their keys and values.

        Args:
            slots: int64 [N], ascending.
            positions: int64 [N, Q]; anything where padding.
            is_padding: bool [N, Q]; None means none.

        Returns:
            float [N, Q, hidden], meaningless where padding.
        """
        num_visible = int(positions.max()) + 1
        places = positions
        if is_padding is not None:
            places = positions.masked_fill(is_padding, self.cache.padding_place)
            positions = positions.masked_fill(is_padding, 0)  # any position that sees a key at all
        self.cache.point_at(slots, places, num_visible, self.batch.is_leading(slots))
        return self._decoder(slots, positions, num_visible, self.cache)

    def _decoder(self, slots: Tensor, positions: Tensor, num_visible: int, cache: KVCache | None) -> Tensor:
        return self.model.model(
            input_ids=self.batch.tokens[slots[:, None], positions],
            position_ids=positions,
            attention_mask=decoding_mask(self.model, positions, num_visible, self.batch.block_size),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _draw(self, slots: Tensor, hidden: Tensor, is_masked: Tensor) -> Candidates:
        """LM head and sampling at the masked positions only; float [N, B, hidden], bool [N, B] -> M candidates."""
        hidden = hidden[is_masked]
        params = self.batch.sampling_params(slots, is_masked)
        chunk = max(1, LOGITS_PER_CHUNK // self.model.config.vocab_size)
        parts = [
            draw_candidates(
                self.model.lm_head(hidden[start : start + chunk]),
                params.slice(start, start + chunk),
                self.batch.mask_token_id,
            )
            for start in range(0, len(hidden), chunk)
        ]
        return agreed_candidates(Candidates.concatenate(parts), self.model.sharding)


class UnfusedRunner(ModelRunner):
    """Pays a forward of its own for every finished block, as other engines do; for comparison."""

    def commit(self, slots: Tensor) -> None:
        """Store the blocks just finished by `slots`, int64 [N]."""
        if len(slots) == 0:
            return
        self.batch.num_forwards[slots] += 1
        self._forward(slots, self.batch.block_positions(slots) - self.batch.block_size)
        self.batch.has_uncommitted_block[slots] = False


class UncachedRunner(ModelRunner):
    """Recomputes the whole sequence at every step: slow, obviously right, the reference for the others.

    Only denoising forwards are counted: there is nothing to prefill or to commit.
    """

    def __init__(self, model: BlockDiffusionModel, batch: Batch) -> None:
        self.model = model
        self.batch = batch

    def prefill(self, slots: Tensor) -> None:
        """Nothing to do."""

    def denoise(self, slots: Tensor, is_masked: Tensor) -> Candidates:
        """One forward over everything up to the end of the active blocks (see `ModelRunner.denoise`)."""
        block_positions = self.batch.block_positions(slots)
        positions = torch.arange(int(block_positions.max()) + 1, device=slots.device).expand(len(slots), -1)
        self.batch.num_forwards[slots] += 1
        hidden = self._decoder(slots, positions, positions.shape[1], cache=None)
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        return self._draw(slots, hidden[rows, block_positions], is_masked)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Nothing to do."""

    def clear(self, slots: Tensor) -> None:
        """Nothing to do."""

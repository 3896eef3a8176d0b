"""The running requests' state, as tensors: nothing here is done one request at a time except admitting and finishing.

Shape legend: S slots, n running requests (they always fill slots 0 .. n-1), N rows of one forward, B block size,
L positions, M masked positions of the active blocks of N rows.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from t3d.engine.request import Request
from t3d.engine.rules import RULES, rule_number
from t3d.engine.sampling import Candidates, SamplingParams
from t3d.noise import draw_keys
from t3d.types import Generation

NOT_FINITE = "the model's logits were not finite"


class Batch:
    """Slots for `num_slots` requests that share a block size; row i of every tensor belongs to slot i.

    Attributes:
        requests: who is in slots 0 .. n-1.
        tokens: int64 [S, L] prompt and response, the mask token where unknown.
        reveal_steps: int64 [S, L] 1-based denoising step of the request that revealed the position, else 0.
        confidences: float32 [S, L].
        block_start: int64 [S] first position of the active block.
        num_steps, num_forwards: int64 [S] denoising steps, and all forwards, so far.
        has_uncommitted_block: bool [S] the block before the active one is finished but not in the cache yet.
        has_failed: bool [S].
        admitted_at: float64 [S] seconds of `time.perf_counter`.
    """

    def __init__(self, requests: list[Request], num_slots: int, mask_token_id: int, device: torch.device) -> None:
        """Size the tensors for any `num_slots` of `requests`; none is admitted yet."""
        self.requests: list[Request] = []
        self.num_slots = num_slots
        self.block_size = requests[0].block_size
        self.num_positions = max(request.num_positions for request in requests)
        self.mask_token_id = mask_token_id
        self.device = device
        self._offsets = torch.arange(self.block_size, device=device)

        def column(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros((num_slots, *width), dtype=dtype, device=device)

        self.tokens = column(torch.int64, self.num_positions)
        self.reveal_steps = column(torch.int64, self.num_positions)
        self.confidences = column(torch.float32, self.num_positions)
        self.block_start = column(torch.int64)
        self.num_steps = column(torch.int64)
        self.num_forwards = column(torch.int64)
        self.has_uncommitted_block = column(torch.bool)
        self.has_failed = column(torch.bool)
        self.admitted_at = column(torch.float64)
        # What each request asked for.
        self.prompt_length = column(torch.int64)
        self.max_length = column(torch.int64)
        self.seed = column(torch.int64)
        self.steps_per_block = column(torch.int64)
        self.rule = column(torch.int64)  # its `rule_number`
        self.top_k = column(torch.int64)
        self.temperature = column(torch.float32)
        self.top_p = column(torch.float32)
        self.threshold = column(torch.float32)
        self.entropy_bound = column(torch.float32)
        # -1, which is no token, fills the rows of requests with fewer stop tokens than others.
        self.stop_tokens = column(torch.int64, max(len(request.stop_token_ids) for request in requests))

    @property
    def num_running(self) -> int:
        """n."""
        return len(self.requests)

    @property
    def num_free(self) -> int:
        """Slots that wait for a request."""
        return self.num_slots - self.num_running

    def running(self) -> Tensor:
        """The slots in use, int64 [n]."""
        return torch.arange(self.num_running, device=self.device)

    def is_leading(self, slots: Tensor) -> bool:
        """Whether `slots`, ascending, are all those in use, which lie in front."""
        return len(slots) == self.num_running

    # --- admitting ---

    def admit(self, requests: list[Request]) -> Tensor:
        """Put requests into the first free slots; int64 [K] the slots."""
        slots = torch.arange(self.num_running, self.num_running + len(requests), device=self.device)
        self.requests += requests
        prompts = torch.full((len(requests), self.num_positions), self.mask_token_id)
        for row, request in enumerate(requests):
            prompts[row, : request.prompt_length] = torch.tensor(request.prompt_ids)
        self.tokens[slots] = prompts.to(self.device)
        for fresh in (self.reveal_steps, self.confidences, self.num_steps, self.num_forwards):
            fresh[slots] = 0
        self.has_uncommitted_block[slots] = False
        self.has_failed[slots] = False
        self.admitted_at[slots] = time.perf_counter()
        self._write_settings(slots, requests)
        return slots

    def _write_settings(self, slots: Tensor, requests: list[Request]) -> None:
        width = self.stop_tokens.shape[1]
        settings = (
            (self.block_start, [request.prefill_length for request in requests]),
            (self.prompt_length, [request.prompt_length for request in requests]),
            (self.max_length, [request.max_length for request in requests]),
            (self.seed, [request.seed for request in requests]),
            (self.steps_per_block, [request.steps_per_block for request in requests]),
            (self.rule, [rule_number(request.decoding.rule) for request in requests]),
            (self.top_k, [request.decoding.top_k for request in requests]),
            (self.temperature, [request.decoding.temperature for request in requests]),
            (self.top_p, [request.decoding.top_p for request in requests]),
            (self.threshold, [request.decoding.threshold for request in requests]),
            (self.entropy_bound, [request.decoding.entropy_bound for request in requests]),
            (self.stop_tokens, [_padded(request.stop_token_ids, width) for request in requests]),
        )
        for column, values in settings:
            column[slots] = torch.tensor(values, dtype=column.dtype, device=self.device).reshape(
                len(requests), *column.shape[1:]
            )

    # --- the active blocks ---

    def block_positions(self, slots: Tensor) -> Tensor:
        """Absolute positions of the active blocks, int64 [N, B]."""
        return self.block_start[slots, None] + self._offsets

    def block_is_masked(self, slots: Tensor) -> Tensor:
        """What is still unknown in the active blocks, bool [N, B]."""
        return self.tokens[slots[:, None], self.block_positions(slots)] == self.mask_token_id

    def unfinished(self, slots: Tensor) -> Tensor:
        """Those of `slots` whose active block still has masks (and whose request has not failed)."""
        return slots[self.block_is_masked(slots).any(dim=1) & ~self.has_failed[slots]]

    def sampling_params(self, slots: Tensor, is_masked: Tensor) -> SamplingParams:
        """How to draw at the M masked positions of the active blocks, row by row; bool [N, B] -> [M]."""
        rows, offsets = is_masked.nonzero(as_tuple=True)
        owner = slots[rows]
        keys = draw_keys(self.seed[owner], self.block_start[owner] + offsets, self.num_steps[owner])
        return SamplingParams(self.temperature[owner], self.top_k[owner], self.top_p[owner], keys)

    def reveal(self, slots: Tensor, is_masked: Tensor, candidates: Candidates, step: int) -> None:
        """Write the candidates that each request's rule chooses.

        Args:
            slots: int64 [N].
            is_masked: bool [N, B] of their active blocks.
            candidates: for the M masked positions, row by row.
            step: 0-based step within the block.
        """
        confidence = torch.zeros(is_masked.shape, device=self.device).masked_scatter(is_masked, candidates.confidence)
        entropy = torch.zeros_like(confidence).masked_scatter(is_masked, candidates.entropy)
        token_ids = torch.zeros_like(is_masked, dtype=torch.int64).masked_scatter(is_masked, candidates.token_ids)
        is_finite = confidence.isfinite().all(dim=1)
        self.has_failed[slots] = ~is_finite
        self.num_steps[slots] += 1
        chosen = self._apply_rules(slots, confidence, is_masked, step, entropy) & is_finite[:, None]
        rows, offsets = chosen.nonzero(as_tuple=True)
        owner = slots[rows]
        place = (owner, self.block_start[owner] + offsets)
        self.tokens[place] = token_ids[rows, offsets]
        self.confidences[place] = confidence[rows, offsets]
        self.reveal_steps[place] = self.num_steps[owner]

    def _apply_rules(self, slots: Tensor, confidence: Tensor, is_masked: Tensor, step: int, entropy: Tensor) -> Tensor:
        chosen = torch.zeros_like(is_masked)
        rule = self.rule[slots, None]
        for name in {request.decoding.rule for request in self.requests}:
            reveal = RULES[name](
                confidence,
                is_masked,
                step,
                self.steps_per_block[slots],
                entropy=entropy,
                threshold=self.threshold[slots],
                entropy_bound=self.entropy_bound[slots],
            )
            chosen |= reveal & (rule == rule_number(name))
        return chosen

    def advance(self) -> Tensor:
        """Close the finished active blocks and open the next; int64 [K] the slots whose request is over instead."""
        slots = self.running()
        positions = self.block_positions(slots)
        block = self.tokens[slots[:, None], positions]
        is_response = positions >= self.prompt_length[slots, None]
        is_stop = (block[:, :, None] == self.stop_tokens[slots, None, :]).any(dim=2) & is_response
        block_end = self.block_start[slots] + self.block_size
        is_over = is_stop.any(dim=1) | (block_end >= self.max_length[slots]) | self.has_failed[slots]
        self.block_start[slots] = block_end
        self.has_uncommitted_block[slots] = True
        return slots[is_over]

    # --- finishing ---

    def generations(self, slots: Tensor) -> list[Generation]:
        """The results of requests that are over, int64 [K]."""
        columns = (self.tokens, self.reveal_steps, self.confidences, self.block_start, self.num_forwards)
        more = (self.has_failed, self.admitted_at)
        rows = zip(slots.tolist(), *(column[slots].tolist() for column in (*columns, *more)), strict=True)
        now = time.perf_counter()  # the device has handed over what it computed
        results = []
        for slot, tokens, steps, confidences, end, num_forwards, has_failed, admitted_at in rows:
            request = self.requests[slot]
            start = request.prompt_length
            if has_failed and self.mask_token_id in tokens[start:end]:
                end = tokens.index(self.mask_token_id, start)  # what it has so far
            results.append(
                request.generation(
                    tokens[start:end],
                    steps[start:end],
                    confidences[start:end],
                    num_forwards,
                    now - admitted_at,
                    NOT_FINITE if has_failed else None,
                )
            )
        return results

    def release(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Free slots, moving the last running requests into the holes.

        Returns:
            int64 [K] twice: the slots that were moved, and where to; the cache has to follow.
        """
        freed = set(slots.tolist())
        num_left = self.num_running - len(freed)
        holes = sorted(slot for slot in freed if slot < num_left)
        movers = [slot for slot in range(num_left, self.num_running) if slot not in freed]
        for hole, mover in zip(holes, movers, strict=True):
            self.requests[hole] = self.requests[mover]
        del self.requests[num_left:]
        source = torch.tensor(movers, dtype=torch.int64, device=self.device)
        target = torch.tensor(holes, dtype=torch.int64, device=self.device)
        for column in vars(self).values():
            if isinstance(column, Tensor) and column is not self._offsets:
                column[target] = column[source]
        return source, target


def _padded(stop_token_ids: frozenset[int], width: int) -> list[int]:
    return [*sorted(stop_token_ids), *[-1] * (width - len(stop_token_ids))]

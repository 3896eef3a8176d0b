"""The running requests' state, on the device. The host writes a row when a request enters and never reads it back.

Only the active block and the one before live here: finished blocks leave with the step's report, so that a state row
    costs
the same for a context of 32 or of 32,000 positions.

Shape legend: S slots, B block size, E stop tokens, n rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from t3d.engine.continuous.transfer import sent
from t3d.engine.request import Request
from t3d.engine.rules import rule_number

MIN_STOP_TOKENS = 8


class Field(IntEnum):
    """Columns of `State.numbers`: what was asked, then how far it has come."""

    SEED = 0
    PROMPT_LENGTH = 1
    MAX_LENGTH = 2
    STEPS_PER_BLOCK = 3
    RULE = 4  # its `rule_number`
    TOP_K = 5
    IS_RUNNING = 6
    BLOCK_START = 7  # first position of the active block
    STEP_IN_BLOCK = 8
    NUM_STEPS = 9  # denoising steps so far
    NUM_FORWARDS = 10  # those, and the prefill
    HAS_UNCOMMITTED = (
        11  # the block before the active one is finished, but its keys and values are not those of its tokens
    )


class Setting(IntEnum):
    """Columns of `State.settings`."""

    TEMPERATURE = 0
    TOP_P = 1
    THRESHOLD = 2
    ENTROPY_BOUND = 3


class State:
    """Slots for S requests of one block size, and the idle slot S, which pads batches and never runs.

    Attributes:
        numbers: int64 [S + 1, len(Field)].
        settings: float32 [S + 1, len(Setting)].
        stop_tokens: int64 [S + 1, E], filled up with -1, which is no token.
        previous: int64 [S + 1, B] tokens of the block before the active one.
        active: int64 [S + 1, B] tokens of the active block, the mask token where unknown.
        reveal_steps: int64 [S + 1, B] of the active block: 1-based denoising step of the request, 0 where not revealed.
        confidences: float32 [S + 1, B] of the active block.
    """

    def __init__(
        self, num_slots: int, block_size: int, mask_token_id: int, num_stop_tokens: int, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        self.device = device
        rows, width = num_slots + 1, max(MIN_STOP_TOKENS, num_stop_tokens)
        self.numbers = torch.zeros((rows, len(Field)), dtype=torch.int64, device=device)
        self.numbers[num_slots, Field.STEPS_PER_BLOCK] = 1  # the rules divide by it
        self.settings = torch.zeros((rows, len(Setting)), dtype=torch.float32, device=device)
        self.stop_tokens = torch.full((rows, width), -1, device=device)
        self.previous = torch.zeros((rows, block_size), dtype=torch.int64, device=device)
        self.active = torch.full((rows, block_size), mask_token_id, device=device)
        self.reveal_steps = torch.zeros((rows, block_size), dtype=torch.int64, device=device)
        self.confidences = torch.zeros((rows, block_size), dtype=torch.float32, device=device)

    @property
    def idle_slot(self) -> int:
        """The slot that no request ever has."""
        return self.num_slots

    @cached_property
    def offsets(self) -> Tensor:
        """0 .. B-1, int64 [B]."""
        return torch.arange(self.block_size, device=self.device)

    def _columns(self) -> tuple[Tensor, ...]:
        tensors = (self.numbers, self.settings, self.stop_tokens, self.previous, self.active)
        return (*tensors, self.reveal_steps, self.confidences)

    def write(self, slots: Sequence[int], rows: Sequence[Row]) -> None:
        """Put rows into slots; the copies wait for the steps that are under way, and the host for neither."""
        index = sent(torch.tensor(slots), self.device)
        for column, values in zip(self._columns(), zip(*rows, strict=True), strict=True):
            column.index_copy_(0, index, sent(torch.stack(values), self.device))

    def read(self, slot: int) -> Row:
        """A slot's row, on the host. Waits for the steps that are under way."""
        return tuple(column[slot].clone().cpu() for column in self._columns())

    def stop(self, slots: Sequence[int]) -> None:
        """Let requests run no further."""
        self.numbers[sent(torch.tensor(slots), self.device), Field.IS_RUNNING] = 0

    def new_row(self, request: Request) -> Row:
        """The row of a request whose prompt has been prefilled."""
        decoding = request.decoding
        numbers = dict.fromkeys(Field, 0) | {
            Field.SEED: request.seed,
            Field.PROMPT_LENGTH: request.prompt_length,
            Field.MAX_LENGTH: request.max_length,
            Field.STEPS_PER_BLOCK: request.steps_per_block,
            Field.RULE: rule_number(decoding.rule),
            Field.TOP_K: decoding.top_k,
            Field.IS_RUNNING: 1,
            Field.BLOCK_START: request.prefill_length,
            Field.NUM_FORWARDS: int(request.prefill_length > 0),
        }
        left_over = request.prompt_ids[request.prefill_length :]
        stop_tokens = sorted(request.stop_token_ids)
        width, masks = self.stop_tokens.shape[1], self.block_size - len(left_over)
        return (
            torch.tensor([numbers[field] for field in Field]),
            torch.tensor([decoding.temperature, decoding.top_p, decoding.threshold, decoding.entropy_bound]),
            torch.tensor([*stop_tokens, *[-1] * (width - len(stop_tokens))]),
            torch.zeros(self.block_size, dtype=torch.int64),
            torch.tensor([*left_over, *[self.mask_token_id] * masks]),
            torch.zeros(self.block_size, dtype=torch.int64),
            torch.zeros(self.block_size),
        )


Row = tuple[Tensor, ...]
"""One slot of every tensor of a `State`, in their order, on the host."""

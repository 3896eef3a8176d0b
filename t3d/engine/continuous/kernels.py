"""Which implementation runs a step's parts: plain torch, or Triton on a GPU."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig

from t3d.engine.continuous import steps
from t3d.engine.continuous.state import State
from t3d.engine.continuous.steps import Work
from t3d.engine.sampling import Candidates, SamplingParams, draw_candidates
from t3d.kernels.ops import Ops, TorchOps


class Kernels(Protocol):
    """A step's parts.

    Attributes:
        ops: for the decoder.
        prefill_half: half a prefill tile, in tokens.
    """

    ops: Ops
    prefill_half: int

    def decode_splits(self, num_rows: int) -> int:
        """Shares into which attention cuts a row's keys in a step of so many rows."""
        ...

    def begin(
        self, state: State, slots: Tensor, page_table: Tensor, page_size: int, commits: int, samples: int
    ) -> Work:
        """See `t3d.engine.continuous.steps.begin`."""
        ...

    def draw(
        self, logits: Tensor, params: SamplingParams, mask_token_id: int, num_samples: Tensor, needs_entropy: bool
    ) -> Candidates:
        """See `t3d.engine.sampling.draw_candidates`; rows from `num_samples`, int32 [1], on are padding."""
        ...

    def finish(self, state: State, work: Work, candidates: Candidates, rules: frozenset[str]) -> Tensor:
        """See `t3d.engine.continuous.steps.finish`."""
        ...


class TorchKernels:
    """Plain torch, for any device and dtype. What the methods mean: `Kernels`."""

    prefill_half = 32

    def __init__(self) -> None:
        self.ops: Ops = TorchOps()

    def decode_splits(self, num_rows: int) -> int:
        """See `Kernels`."""
        return 1

    def begin(
        self, state: State, slots: Tensor, page_table: Tensor, page_size: int, commits: int, samples: int
    ) -> Work:
        """See `Kernels`."""
        return steps.begin(state, slots, page_table, page_size, commits, samples)

    def draw(
        self, logits: Tensor, params: SamplingParams, mask_token_id: int, num_samples: Tensor, needs_entropy: bool
    ) -> Candidates:
        """See `Kernels`."""
        return draw_candidates(logits, params, mask_token_id)

    def finish(self, state: State, work: Work, candidates: Candidates, rules: frozenset[str]) -> Tensor:
        """See `Kernels`."""
        return steps.finish(state, work, candidates, rules)


def kernels_for(config: PretrainedConfig, block_size: int, max_samples: int, device: torch.device) -> Kernels:
    """The fastest that the device and the installed packages allow.

    Args:
        config: the model's.
        block_size: B.
        max_samples: rows of the largest draw.
        device: where.
    """
    if device.type == "cuda":
        try:
            from t3d.engine.continuous.kernels_triton import TritonKernels, supports
        except ImportError:  # no triton: everything works, slower
            return TorchKernels()
        if supports(config):
            return TritonKernels(config, block_size, max_samples, device)
    return TorchKernels()

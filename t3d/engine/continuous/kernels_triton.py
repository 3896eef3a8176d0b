"""A step's parts on a GPU: one launch each around the model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from t3d.engine.continuous import steps_triton
from t3d.engine.continuous.state import State
from t3d.engine.continuous.steps import Work
from t3d.engine.sampling import Candidates, SamplingParams, draw_candidates
from t3d.kernels.attention_launch import choose_splits, next_power_of_2
from t3d.kernels.draw_triton import DrawWorkspace, draw
from t3d.kernels.ops import Ops
from t3d.kernels.ops_triton import TritonOps

CPU_SMS = 4
"""Under Triton's interpreter, which has no multiprocessors."""
PREFILL_ROWS = 128
"""Query rows of a program, places times heads: more of them spill registers."""


class TritonKernels:
    """What the methods mean: `t3d.engine.continuous.kernels.Kernels`.

    Args:
        config: the model's.
        block_size: B.
        max_samples: rows of the largest draw.
        device: where.
    """

    def __init__(self, config: PretrainedConfig, block_size: int, max_samples: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else CPU_SMS
        self._num_kv_heads = config.num_key_value_heads
        group = config.num_attention_heads // config.num_key_value_heads
        self.prefill_half = PREFILL_ROWS // (2 * next_power_of_2(group)) or 1
        self.ops: Ops = TritonOps(block_size, group, config.head_dim, device, self._num_sms)
        self._workspace = DrawWorkspace(max_samples, config.vocab_size, device)

    def decode_splits(self, num_rows: int) -> int:
        """See `Kernels`."""
        return choose_splits(num_rows, self._num_kv_heads, self._num_sms)

    def begin(
        self, state: State, slots: Tensor, page_table: Tensor, page_size: int, commits: int, samples: int
    ) -> Work:
        """See `Kernels`."""
        return steps_triton.begin(state, slots, page_table, page_size, commits, samples)

    def draw(
        self, logits: Tensor, params: SamplingParams, mask_token_id: int, num_samples: Tensor, needs_entropy: bool
    ) -> Candidates:
        """See `Kernels`; filters take plain torch, which sorts."""
        if params.has_filters:
            return draw_candidates(logits, params, mask_token_id)
        has_draws = params.has_draws is not False
        return Candidates(
            *draw(
                logits,
                params.temperature,
                params.keys,
                mask_token_id,
                has_draws,
                self._workspace,
                num_samples,
                needs_entropy,
            )
        )

    def finish(self, state: State, work: Work, candidates: Candidates, rules: frozenset[str]) -> Tensor:
        """See `Kernels`."""
        return steps_triton.finish(state, work, candidates, rules)


def supports(config: PretrainedConfig) -> bool:
    """Whether the kernels can do these shapes."""
    return config.head_dim >= 16 and config.head_dim & (config.head_dim - 1) == 0

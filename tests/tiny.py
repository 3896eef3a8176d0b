"""Small random models and rows that several test files share."""

from __future__ import annotations

from types import MethodType

import numpy as np
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm, Qwen3MoeTopKRouter

from t3d.config import CorruptionConfig
from t3d.corruption import NoisyExample, TrainingRow, corrupt, row_generator
from t3d.models import FAMILIES, BlockDiffusionModel

VOCAB, MASK, EOS = 31, 29, 1
RMS_NORMS = (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, Qwen3MoeRMSNorm)
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "norm_topk_prob": True}
"""What a family with experts needs beside the other shapes."""


def tiny_model(
    seed: int = 0, dtype: torch.dtype = torch.float64, family: str = "sdar", **fields
) -> BlockDiffusionModel:
    """A random model whose attention is far from uniform, so that a wrong mask shows; biases are not zero."""
    shapes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "block_size": 4,
        "initializer_range": 0.5,
        "max_position_embeddings": 64,
    }
    shapes |= MIXTURE if family.endswith("_moe") else {}
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**{**shapes, **fields})).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
        if isinstance(module, RMS_NORMS) and dtype == torch.float64:
            module.forward = MethodType(_exact_norm, module)
        if isinstance(module, Qwen3MoeTopKRouter) and dtype == torch.float64:
            module.forward = MethodType(_exact_router, module)
    return model


def _exact_norm(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Transformers' own rounds to float32, which would hide small errors behind a tolerance of 1e-7."""
    return norm.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def _exact_router(router: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_exact_norm`: transformers' own softmax is in float32."""
    logits = nn.functional.linear(hidden, router.weight)
    weights, chosen = logits.softmax(dim=-1).topk(router.top_k, dim=-1)
    return logits, weights / weights.sum(dim=-1, keepdim=True), chosen


def random_row(row_id: str, prompt_length: int, length: int, seed: int = 0) -> TrainingRow:
    """Random tokens other than the mask, revealed in a random order."""
    rng = np.random.default_rng([seed, prompt_length, length])
    tokens = rng.integers(2, MASK, size=prompt_length + length)
    return TrainingRow(row_id, tokens[:prompt_length], tokens[prompt_length:], 1 + rng.permutation(length))


def noisy_example(
    row: TrainingRow,
    hider: str = "order",
    block_size: int = 4,
    epoch: int = 0,
    seed: int = 0,
    progress: float = 0.0,
    complement: bool = False,
    **config,
) -> NoisyExample:
    """`corrupt` with this vocabulary and the row's own random stream."""
    return corrupt(
        row,
        CorruptionConfig(**config),
        hider,
        block_size=block_size,
        mask_token_id=MASK,
        vocab_size=VOCAB,
        rng=row_generator(seed, epoch, row.row_id),
        progress=progress,
        complement=complement,
    )


ODD_LENGTHS = ((5, 9), (4, 4), (7, 2), (0, 6), (3, 11), (8, 1), (1, 7))
"""(prompt tokens, response tokens): on and off the block grid."""


def noisy_examples(hider: str = "order", block_size: int = 4) -> list[NoisyExample]:
    """One example for each of `ODD_LENGTHS`."""
    rows = [random_row(f"row {index}", *lengths) for index, lengths in enumerate(ODD_LENGTHS)]
    return [noisy_example(row, hider, block_size, ratios=(1.0, 0.75, 0.5, 0.25), ratio_power=0) for row in rows]

"""Path consistency: cross-entropy that weighs early-revealed tokens more, since an error there spoils the rest.

Source: design section 5; at hidden ratio 1 it agrees with the public code's path loss (`self_ddo_sdar_full.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.corruption.records import LossTokens
from t3d.objectives.base import sum_per_example


def path_weights(tokens: LossTokens, k: int) -> Tensor:
    """Weight of each hidden token in its example's path loss; they sum to 1 over an example.

    With S = ceil(B / k) levels, level s covers the N_s hidden tokens of rank below (s + 1) k, and
    `L_path = (1 / S') sum_s (1 / N_s) sum_{rank_i < (s + 1) k} CE_i` over the S' non-empty levels. So token i of level
    s_i = floor(rank_i / k) weighs `(1 / S') sum_{s >= s_i} 1 / N_s`.

    Args:
        tokens: M tokens with loss.
        k: tokens that each level adds, 1 <= k.

    Returns:
        float32 [M].
    """
    num_levels = -(-tokens.block_size // k)
    level = torch.div(tokens.ranks, k, rounding_mode="floor")
    cell = tokens.example * num_levels + level
    per_level = torch.zeros(tokens.num_examples * num_levels, device=cell.device)
    per_level = per_level.index_add(0, cell, torch.ones_like(cell, dtype=per_level.dtype)).view(-1, num_levels)
    covered = per_level.cumsum(dim=1)  # N_s
    share = torch.where(covered > 0, 1.0 / covered.clamp_min(1), 0.0)
    non_empty = (covered > 0).sum(dim=1, keepdim=True).clamp_min(1)
    from_level_on = share.flip(1).cumsum(dim=1).flip(1) / non_empty
    return from_level_on.view(-1)[cell].float()


def path_loss(cross_entropy: Tensor, tokens: LossTokens, k: int) -> Tensor:
    """float32 [M] cross-entropies -> [E] path loss of each example."""
    return sum_per_example(path_weights(tokens, k) * cross_entropy, tokens)

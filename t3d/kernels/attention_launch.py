"""How the attention kernel is launched: splits of the context, their workspace, and one table of compile options.

No Triton here, so that a runner can be built, and read, without it.
Shape legend: H key-value heads, G query heads of each, D head dimension, T tiles, R rows of a program: a tile's places
times the group, both rounded up to powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MIN_ROWS = 16  # of a matrix product on tensor cores
_MAX_SPLITS = 32
_PROGRAMS_PER_SM = 1


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How the kernel is compiled for one regime.

    Attributes:
        keys_per_tile: keys that a program handles at a time; a power of two, at least 16 (a page bounds it).
        num_warps: of a program.
        num_stages: depth of the pipeline that prefetches keys and values.
        skips_masks: walk the key tiles that every query sees whole in a loop of their own, without a mask. Worth it
            where arithmetic is the bound; it starts the pipeline twice.
    """

    keys_per_tile: int
    num_warps: int
    num_stages: int
    skips_masks: bool


_HALF_PRECISION_CONFIGS = {
    16: LaunchConfig(64, 4, 3, skips_masks=False),
    32: LaunchConfig(64, 4, 3, skips_masks=False),
    64: LaunchConfig(64, 4, 3, skips_masks=True),
    128: LaunchConfig(64, 8, 3, skips_masks=True),
    256: LaunchConfig(64, 8, 3, skips_masks=True),
}
"""By R, rows of a program: decoding has 16 or 32, prefill 64 or more."""
_BETWEEN = LaunchConfig(32, 2, 3, skips_masks=False)
"""For 16 or 32 rows where there are several programs a multiprocessor, but not yet many."""
_BETWEEN_PROGRAMS = range(257, 1025)
_FLOAT32_CONFIG = LaunchConfig(16, 8, 1, skips_masks=False)
"""For checks, not for speed: float32 has no exact tensor-core product."""


class AttentionWorkspace:
    """Where programs that share a tile leave their partial results. Make it outside of CUDA graphs; one per stream."""

    def __init__(self, half: int, group: int, head_dim: int, device: torch.device | str, num_sms: int = 132) -> None:
        """Enough for every launch whose `num_splits` comes from `choose_splits` with the same `num_sms`.

        Args:
            half: places of half a tile.
            group: G.
            head_dim: D.
            device: of the tensors.
            num_sms: streaming multiprocessors of the GPU.
        """
        self.max_programs = _PROGRAMS_PER_SM * num_sms
        rows = program_rows(half, group)
        self.partials = torch.empty(self.max_programs, rows, head_dim, device=device)
        self.log_sums = torch.empty(self.max_programs, rows, device=device)
        self.counters = torch.zeros(self.max_programs, dtype=torch.int32, device=device)


def choose_splits(num_tiles: int, num_kv_heads: int, num_sms: int = 132) -> int:
    """Programs to share each tile's keys: a power of two that fills the GPU, at most 32, 1 where tiles alone do.

    Args:
        num_tiles: T.
        num_kv_heads: H.
        num_sms: streaming multiprocessors of the GPU.
    """
    room = _PROGRAMS_PER_SM * num_sms // max(1, num_tiles * num_kv_heads)
    return min(_MAX_SPLITS, 1 << max(0, room.bit_length() - 1))


def launch_config(rows: int, dtype: torch.dtype, num_programs: int) -> LaunchConfig:
    """The entry for so many programs of R rows of a dtype; chosen by measurement on an H200."""
    if dtype == torch.float32:
        return _FLOAT32_CONFIG
    if rows <= 2 * _MIN_ROWS and num_programs in _BETWEEN_PROGRAMS:
        return _BETWEEN
    return _HALF_PRECISION_CONFIGS[min(rows, 256)]


def program_rows(half: int, group: int) -> int:
    """R: query rows of one program."""
    return max(_MIN_ROWS, next_power_of_2(2 * half) * next_power_of_2(group))


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()

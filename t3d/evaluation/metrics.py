"""Figures of an evaluation."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson_interval(num_right: int, num_problems: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); behaves at 0 and 1, where the normal one does not."""
    if num_problems == 0:
        return 0.0, 1.0
    share = num_right / num_problems
    scale = 1 + Z_95**2 / num_problems
    centre = (share + Z_95**2 / (2 * num_problems)) / scale
    spread = share * (1 - share) / num_problems + Z_95**2 / (4 * num_problems**2)
    half = Z_95 * math.sqrt(spread) / scale
    low, high = min(share, centre - half), max(share, centre + half)  # rounding must not exclude the share
    return max(0.0, low), min(1.0, high)

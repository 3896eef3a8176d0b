"""What the device does at best, measured in the run that is compared with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from t3d.bench.roofline import Ceilings

COPY_BYTES = 4 * 2**30
MATRIX_SIZE = 8192
REPEATS = 20


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings | None:
    """Median speed of a copy of 4 GiB (read and written) and of a product of two [8192, 8192]; None on the CPU."""
    if device.type != "cuda":
        return None
    ceilings = Ceilings(
        2 * COPY_BYTES / _seconds_of_copy(device), 2 * MATRIX_SIZE**3 / _seconds_of_product(device, dtype)
    )
    torch.cuda.empty_cache()
    return ceilings


def _seconds_of_copy(device: torch.device) -> float:
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median_seconds(lambda: target.copy_(source))


def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn((MATRIX_SIZE, MATRIX_SIZE), device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return _median_seconds(lambda: torch.mm(left, right, out=product))


def _median_seconds(work: Callable[[], object]) -> float:
    """Of one call of `work` on the device, after a few to warm up."""
    for _ in range(3):
        work()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1000

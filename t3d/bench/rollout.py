"""Run a plan: build the model, measure each number of requests with each setting, write every row down at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from t3d.bench.batches import BatchBench
from t3d.bench.ceilings import measure_ceilings
from t3d.bench.plan import Plan
from t3d.bench.report import NOTE, Row, make_row
from t3d.bench.result_file import ResultFile
from t3d.bench.roofline import model_facts
from t3d.bench.shapes import build_model
from t3d.bench.sustained import NUM_PARTS, QueueBench
from t3d.bench.timing import OnStretch, Stretch, free_memory
from t3d.models import BlockDiffusionModel
from t3d.progress import progress
from t3d.types import Decoding


def bench_rollout(plan: Plan, device: torch.device, dtype: torch.dtype, file: Path, command: str) -> list[Row]:
    """Measure what a plan says.

    Args:
        plan: what.
        device: where.
        dtype: of weights and activations.
        file: JSON file to write, in a folder that exists.
        command: exact, for the file.

    Returns:
        the rows, in the order of the plan.

    Raises:
        RequestError: a plan that cannot be run, or that memory does not allow.
        WorkError: an answer of the wrong length, a queue that ran dry, or a disk that refuses; finished rows stay.
    """
    config = plan.check()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        ceilings = measure_ceilings(device, dtype)
        facts_of_all = {"ceilings": asdict(ceilings) if ceilings else None}
        result = ResultFile[Row](file, command, device, dtype, NOTE, facts_of_all)
        model, facts = build_model(config, device, dtype, plan.seed), model_facts(config, dtype)
        num_stretches = 1 + (NUM_PARTS if plan.queue else plan.repeats)
        total = num_stretches * len(plan.concurrencies) * len(plan.decodings)
        with progress(f"bench {plan.shape}", total, "runs") as bar:
            for concurrency in plan.concurrencies:

                def report(stretch: Stretch, concurrency: int = concurrency) -> None:
                    bar.advance(1, requests=concurrency, **{"tokens/s": f"{stretch.tokens_per_second:,.0f}"})

                for decoding, stretches in _measured(plan, model, concurrency, report):
                    result.add(make_row(plan, concurrency, decoding, stretches, facts, ceilings, device))
    return result.rows


def _measured(
    plan: Plan, model: BlockDiffusionModel, concurrency: int, report: OnStretch
) -> Iterator[tuple[Decoding, list[Stretch]]]:
    """Each setting and what was timed, for one number of requests."""
    free_memory(model.device)
    if plan.queue is not None:
        queue_bench = QueueBench(model, plan, plan.queue, concurrency)
        for decoding in plan.decodings:
            yield decoding, queue_bench.measure(decoding, report)
            free_memory(model.device)
        return
    batch_bench = BatchBench(model, plan, concurrency)
    for decoding in plan.decodings:
        yield decoding, batch_bench.measure(decoding, report)

"""Rows of decoding speed: made from what was timed, shown as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from t3d.bench.plan import Plan
from t3d.bench.result_file import peak_memory_gib, shown
from t3d.bench.roofline import Ceilings, ModelFacts, floor_seconds
from t3d.bench.timing import Stretch
from t3d.types import Decoding

NOTE = (
    "Random weights, random prompts that differ from run to run, no stop tokens: every answer has the length asked "
    "for. tokens_per_second: answer tokens over wall time, prefill included; a batch's median over its runs, or a full "
    "queue's over its window, of which tokens_per_second_runs are the parts. forwards_per_token: denoising forwards "
    "that a request took part in, by answer token; prefill counts in tokens_per_forward only. forwards_per_second: of "
    "the device, prefill included. seconds_to_first_block: from the submission of all requests, medians over runs, of "
    "the first request and of the median one. roofline_share: the least time for the work at the measured ceilings "
    "over the time taken (t3d/bench/roofline.py). peak_memory_gib: reserved by torch."
)
COLUMNS = ("requests", "T", "tokens/s", "TPF", "forwards/s", "1st block", "roofline", "GiB")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. None is what could not be known; `NOTE` says how the figures are counted.

    Attributes:
        shape, backend: what was measured.
        mode: "batch" or "queue".
        concurrency: requests decoded together.
        num_requests: of a run, or in the queue.
        steps_per_block, block_size, rule, threshold, temperature: as in `Decoding`.
        prompt_tokens: of each request.
        new_tokens: of each answer, or the shortest and the longest.
        seconds: timed.
        tokens_per_second, tokens_per_second_runs: the figure, and what it was made of.
        forwards_per_token, tokens_per_forward: of requests.
        forwards_per_second: of the device.
        seconds_to_first_block, median_seconds_to_first_block: of the first request, and over all.
        roofline_share: 0 .. 1.
        peak_memory_gib, memory_limit_gib: on the device; the limit as it was asked for.
        num_preemptions: requests swapped out.
    """

    shape: str
    backend: str
    mode: str
    concurrency: int
    num_requests: int
    steps_per_block: int
    block_size: int
    rule: str
    threshold: float
    temperature: float
    prompt_tokens: int
    new_tokens: int | tuple[int, int]
    seconds: float
    tokens_per_second: float
    tokens_per_second_runs: list[float]
    forwards_per_token: float
    tokens_per_forward: float
    forwards_per_second: float | None
    seconds_to_first_block: float | None
    median_seconds_to_first_block: float | None
    roofline_share: float | None
    peak_memory_gib: float | None
    memory_limit_gib: float | None
    num_preemptions: int | None


def make_row(
    plan: Plan,
    concurrency: int,
    decoding: Decoding,
    stretches: Sequence[Stretch],
    facts: ModelFacts,
    ceilings: Ceilings | None,
    device: torch.device,
) -> Row:
    """The row of a measurement's timed stretches: runs of a batch, or parts of a full queue's window."""
    block_size, queue = decoding.block_size or 0, plan.queue
    seconds = sum(each.seconds for each in stretches)
    num_tokens = sum(each.num_tokens for each in stretches)
    num_decode = sum(each.num_decode_forwards for each in stretches)
    num_prefill = sum(each.num_prefill_forwards for each in stretches)
    rates = [each.tokens_per_second for each in stretches]
    counters = [each.counters for each in stretches if each.counters is not None]
    firsts = [each.first_block_seconds for each in stretches if each.first_block_seconds]
    share = None
    if ceilings is not None and counters:
        floors = (floor_seconds(facts, block_size, plan.prompt_tokens, each, ceilings) for each in counters)
        share = sum(floors) / seconds
    return Row(
        shape=plan.shape,
        backend=plan.backend,
        mode="queue" if queue else "batch",
        concurrency=concurrency,
        num_requests=queue.num_requests if queue else concurrency * plan.requests_per_slot,
        steps_per_block=decoding.steps_per_block or block_size,
        block_size=block_size,
        rule=decoding.rule,
        threshold=decoding.threshold,
        temperature=decoding.temperature,
        prompt_tokens=plan.prompt_tokens,
        new_tokens=queue.answer_tokens if queue else decoding.max_new_tokens,
        seconds=seconds,
        tokens_per_second=num_tokens / seconds if queue else statistics.median(rates),
        tokens_per_second_runs=rates,
        forwards_per_token=num_decode / max(1, num_tokens),
        tokens_per_forward=num_tokens / max(1, num_decode + num_prefill),
        forwards_per_second=sum(each.num_steps + each.num_prefills for each in counters) / seconds
        if counters
        else None,
        seconds_to_first_block=statistics.median(times[0] for times in firsts) if firsts else None,
        median_seconds_to_first_block=statistics.median(map(statistics.median, firsts)) if firsts else None,
        roofline_share=share,
        peak_memory_gib=peak_memory_gib(device),
        memory_limit_gib=plan.memory_gib,
        num_preemptions=sum(each.num_preemptions for each in counters) if counters else None,
    )


def rows_table(rows: Sequence[Row]) -> Table:
    """Every row, for the terminal."""
    first = rows[0]
    title = f"{first.shape}, {first.backend}, blocks of {first.block_size}, {first.rule}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.concurrency),
            str(row.steps_per_block),
            f"{row.tokens_per_second:,.0f}",
            f"{row.tokens_per_forward:.2f}",
            shown(row.forwards_per_second, ",.0f"),
            shown(row.seconds_to_first_block, ".3f", " s"),
            shown(row.roofline_share, ".1%"),
            shown(row.peak_memory_gib, ".1f"),
        )
    return table

"""Rows of training speed: made from timed optimizer steps, shown as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from t3d.bench.result_file import shown
from t3d.models import device_name
from t3d.training.phases import PHASES
from t3d.training.throughput import peak_flops

REST = "rest"
"""What a step does outside of its phases: batches to the device, attention patterns, sums of metrics."""

NOTE = (
    "Random weights, random rows in random reveal orders. lengths real: prompts of 40 to 160 and responses of 100 to "
    "500 tokens, spread evenly, 100 + 300 on average; full: 512 + 1,024 each. Every step has rows of its own. "
    "seconds_per_step: wall time of an optimizer step, from batches in the host's memory to updated weights, of the "
    "median timed step, whose own figures the others are. Preparing batches is not in it, since workers do that "
    "ahead: preparing_seconds_per_example is what one process takes. The reference is replaced in every "
    "reference_refresh_every-th step, which need not be among the timed ones. phases: seconds an example that the "
    "device was at it or waited for the program; rest: what is left of the wall time (attention patterns, copies to "
    "the device). useful_tokens: of responses. tokens: that a forward runs over, clean and noisy, without padding; "
    "share_of_real_positions: their share of all positions. tflop_per_example: what the mathematics asks for, over "
    "real tokens, pairs of them that see each other, and tokens with loss; neither padding nor recomputation counts "
    "(t3d/training/throughput.py). mfu: that, over the time and the device's bf16 peak by its data sheet, whatever "
    "the precision. peak_gib: reserved by torch, the making of the model included; a limit is on the same, and the "
    "driver's context takes some hundred MiB beside it. Several processes: seconds are those of the slowest; examples, "
    "tokens and flop those of all; phases, batches and preparing those of the main one. public_seconds_per_example: "
    "the paper's code on an H200 at these shapes and average lengths, forward and backward only; ours includes the "
    "optimizer."
)

PUBLIC_SECONDS: Mapping[tuple[str, str], float] = {
    ("sdar-1.7b", "real"): 0.371,
    ("sdar-1.7b", "full"): 0.434,
    ("sdar-4b", "real"): 0.669,
}
"""(shape, lengths) -> the public code's seconds an example: its shipped configuration, all weights trained."""
PUBLIC_DEVICE = "H200"


@dataclass(frozen=True, slots=True)
class TimedStep:
    """What one optimizer step held and took.

    Attributes:
        seconds: wall time.
        phases: part -> seconds (`t3d.training.phases`).
        preparing_seconds: of this process, making its batches.
        num_batches: forward passes of the student.
        num_positions: that one forward over all batches ran over, padding included.
        num_tokens: of those, real ones.
        num_prompt_tokens, num_response_tokens: of its examples.
        num_flops: that the mathematics asks for.
    """

    seconds: float
    phases: Mapping[str, float]
    preparing_seconds: float
    num_batches: int
    num_positions: int
    num_tokens: int
    num_prompt_tokens: int
    num_response_tokens: int
    num_flops: float


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, with every choice made that the plan left open; how it runs is said in a recipe's words.

    Attributes:
        shape, lengths, objective: what.
        precision, optimizer, adapter, rank, quantize: how it is held and updated; None is what is not used.
        reference, reference_refresh_every: None without a reference.
        attention, compile, checkpoint_layers, tokens_per_batch, block_size: how it is computed.
        processes: that share a step, one a device.
        strategy, gradients: how, as in a recipe's `distributed`; None where one works alone, or holds it all.
        examples_per_step: of one optimizer step, over all processes.
        memory_limit_gib: on the device, as it was asked for.
    """

    shape: str
    lengths: str
    objective: str
    precision: str
    optimizer: str
    adapter: str | None
    rank: int | None
    quantize: str | None
    reference: str | None
    reference_refresh_every: int | None
    attention: str
    compile: bool
    checkpoint_layers: int
    tokens_per_batch: int
    block_size: int
    processes: int
    strategy: str | None
    gradients: str | None
    examples_per_step: int
    memory_limit_gib: float | None


@dataclass(frozen=True, slots=True)
class TrainRow(Setting):
    """One measurement. None is what could not be known; `NOTE` says how the figures are counted.

    Attributes:
        prompt_tokens, response_tokens: mean of an example.
        num_batches: of a step, in the main process.
        seconds_per_step, seconds_per_step_runs: the median timed step; all of them.
        seconds_per_example, examples_per_second: the figures to compare, over all processes.
        phases: part -> seconds an example; with `rest` they add up to it.
        preparing_seconds_per_example: in one process, not part of it.
        useful_tokens_per_second, tokens_per_second: of responses; of all that a forward runs over.
        share_of_real_positions: 0 .. 1.
        tflop_per_example, mfu: what the mathematics asks for; its share of the device's peak, 0 .. 1.
        peak_gib, peak_gib_by_process: on the device; the highest, and each.
        public_seconds_per_example, speedup: of the paper's code, and how many times faster than it.
    """

    prompt_tokens: float
    response_tokens: float
    num_batches: int
    seconds_per_step: float
    seconds_per_step_runs: list[float]
    seconds_per_example: float
    examples_per_second: float
    phases: dict[str, float]
    preparing_seconds_per_example: float
    useful_tokens_per_second: float
    tokens_per_second: float
    share_of_real_positions: float
    tflop_per_example: float
    mfu: float | None
    peak_gib: float | None
    peak_gib_by_process: list[float] | None
    public_seconds_per_example: float | None
    speedup: float | None


def make_row(
    setting: Setting, steps: Sequence[TimedStep], device: torch.device, peaks_gib: Sequence[float] = ()
) -> TrainRow:
    """The row of a measurement.

    Args:
        setting: what was measured.
        steps: timed.
        device: that they ran on, or this process's of several alike.
        peaks_gib: of memory, a process each; empty where nobody knows.
    """
    count, step = setting.examples_per_step, sorted(steps, key=lambda each: each.seconds)[len(steps) // 2]
    phases = {name: step.phases[name] / count for name in PHASES if name in step.phases}
    seconds, peak = step.seconds / count, peak_flops(device)
    public = public_seconds(setting, device_name(device))
    return TrainRow(
        **asdict(setting),
        prompt_tokens=step.num_prompt_tokens / count,
        response_tokens=step.num_response_tokens / count,
        num_batches=step.num_batches,
        seconds_per_step=step.seconds,
        seconds_per_step_runs=[each.seconds for each in steps],
        seconds_per_example=seconds,
        examples_per_second=1 / seconds,
        phases={**phases, REST: seconds - sum(phases.values())},
        preparing_seconds_per_example=step.preparing_seconds / count,
        useful_tokens_per_second=step.num_response_tokens / step.seconds,
        tokens_per_second=step.num_tokens / step.seconds,
        share_of_real_positions=step.num_tokens / step.num_positions,
        tflop_per_example=step.num_flops / count / 1e12,
        mfu=step.num_flops / step.seconds / (peak * setting.processes) if peak else None,
        peak_gib=max(peaks_gib, default=None),
        peak_gib_by_process=list(peaks_gib) or None,
        public_seconds_per_example=public,
        speedup=public / seconds if public else None,
    )


def public_seconds(setting: Setting, device: str) -> float | None:
    """Seconds an example of the public code at the same task on the same device, where that was measured."""
    if setting.processes > 1:
        return None
    if setting.objective != "t3d" or setting.adapter is not None or PUBLIC_DEVICE not in device:
        return None
    return PUBLIC_SECONDS.get((setting.shape, setting.lengths))


def row_table(row: TrainRow) -> Table:
    """A row, for the terminal."""
    table = Table(title=f"{row.shape}, {row.lengths}, {row.objective}", box=SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    for name, value in _lines(row).items():
        table.add_row(name, value)
    return table


def _lines(row: TrainRow) -> dict[str, str]:
    faster = f" ({row.speedup:.1f}x the public code)" if row.speedup else ""
    shared = f" ({row.strategy})" if row.strategy else ""
    return {
        "processes": f"{row.processes}{shared}",
        "seconds a step": f"{row.seconds_per_step:.4g}",
        "examples/s": f"{row.examples_per_second:.4g}",
        "seconds an example": f"{row.seconds_per_example:.4g}{faster}",
        **{f"  {name}": f"{seconds:.4g}" for name, seconds in row.phases.items()},
        "response tokens/s": f"{row.useful_tokens_per_second:,.0f}",
        "tokens/s": f"{row.tokens_per_second:,.0f}",
        "real positions": f"{row.share_of_real_positions:.1%}",
        "TFLOP an example": f"{row.tflop_per_example:.4g}",
        "MFU": shown(row.mfu, ".1%"),
        "peak GiB": ", ".join(f"{peak:.1f}" for peak in row.peak_gib_by_process or ()) or shown(None, ""),
        "batches a step": str(row.num_batches),
    }

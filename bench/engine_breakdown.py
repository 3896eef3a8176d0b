"""Where the time of one step goes: kernels by what they do, from a profile of whole runs.

    python bench/engine_breakdown.py --shape sdar-1.7b --cases 1x4,16x4,64x1,256x1 --out FILE.json

A case is REQUESTSxSTEPS_PER_BLOCK. Prefill is left out: prompts are one block long.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from t3d.bench.shapes import build_model, random_prompts, shape_config
from t3d.engine import Engine
from t3d.engine.continuous import ContinuousEngine
from t3d.files import write_whole
from t3d.types import Decoding

PARTS = {
    "matrix products": ("nvjet", "gemm", "_norm_linear_kernel", "_linear_add_kernel", "splitKreduce", "cutlass"),
    "attention": ("_paged_attention_kernel",),
    "rotary embedding, cache write": ("_rope_and_store_kernel",),
    "norms, gating": ("_rms_norm_kernel", "_begin_norm_kernel", "_silu_mul_kernel"),
    "draw": ("_draw_kernel",),
    "lay out, reveal, report": ("_begin_kernel", "_finish_kernel"),
}


def main() -> None:
    """Profile each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sdar-1.7b")
    parser.add_argument("--cases", default="1x4,16x4,64x1,256x1")
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    model = build_model(shape_config(arguments.shape), torch.device("cuda"), torch.bfloat16)
    rows = []
    for case in arguments.cases.split(","):
        concurrency, steps_per_block = map(int, case.split("x"))
        rows.append(breakdown(model, concurrency, steps_per_block, arguments.new_tokens))
        print(rows[-1])
    result = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__},
        "command": " ".join(["python", *sys.argv]),
        "note": "microseconds a step, mean over a run whose context grows from 4 to 4 + new tokens",
        "shape": arguments.shape,
        "rows": rows,
    }
    write_whole(Path(arguments.out), json.dumps(result, indent=1) + "\n")


def breakdown(model: torch.nn.Module, concurrency: int, steps_per_block: int, new_tokens: int) -> dict[str, object]:
    """Microseconds a step by part, and what the device idled between kernels."""
    backend = ContinuousEngine(model, concurrency)
    engine = Engine(model, stop_token_ids=[], backend=backend)
    prompts = random_prompts(model.config, concurrency, 4, np.random.default_rng(0))
    decoding = Decoding(block_size=4, steps_per_block=steps_per_block, max_new_tokens=new_tokens)
    engine.generate(prompts, decoding)
    before = backend.counters["num_steps"]
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        engine.generate(prompts, decoding)
        torch.cuda.synchronize()
    num_steps = backend.counters["num_steps"] - before
    kernels = sorted((e for e in profiled.events() if e.device_time > 0), key=lambda e: e.time_range.start)
    parts: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        parts[part_of(kernel.name)] += kernel.device_time / num_steps
    whole = (kernels[-1].time_range.end - kernels[0].time_range.start) / num_steps
    parts["between kernels"] = whole - sum(parts.values())
    rounded = {name: round(time, 1) for name, time in sorted(parts.items(), key=lambda item: -item[1])}
    return {
        "concurrency": concurrency,
        "steps_per_block": steps_per_block,
        "step_us": round(whole, 1),
        "parts_us": rounded,
    }


def part_of(kernel: str) -> str:
    """What a kernel is for."""
    for part, names in PARTS.items():
        if any(name in kernel for name in names):
            return part
    return "gathers and copies"


if __name__ == "__main__":
    main()

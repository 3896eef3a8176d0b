"""Training on one GPU and on several: do they agree, how much faster are they, what fits.

    python bench/scaling/training.py                     # one machine, two GPUs, some eight minutes
    python bench/scaling/training.py --tiny              # the same on the CPU with tiny shapes, to see it work

First what must hold: the same small training on one process, on two by DDP and by FSDP2, and resumed on another number,
with losses side by side. Then what is measured, each by `t3d bench train` in processes of its own, with a time limit. A
stage's result stays in --work: a second call goes on where the first one stopped, and what failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import Failed, Result, Stage, run_stages, start

STEPS, RESUMED_AT = 12, 6
TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}
"""Of losses, relative to one process's: rounding, and what twelve steps make of it."""
SHARDED = {"distributed": {"strategy": "fsdp"}}


@dataclass(frozen=True)
class Bench:
    """One measurement: how many processes, and the options of `t3d bench train`."""

    name: str
    processes: int
    options: str
    seconds: float


def main() -> None:
    """Run what has no result yet, write everything into one file, and show it."""
    asked = arguments()
    settings = {"processes": asked.processes, "tiny": asked.tiny}
    results = run_stages(stages_of(asked), settings, asked.work, asked.out, asked.budget)
    print("\n".join(table(results)))
    sys.exit(any("failed" in result for result in results.values()))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Training on one GPU and on several.")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--processes", type=int, default=2, help="GPUs to compare with one")
    parser.add_argument("--only", default="", help="comma-separated stages; default: all")
    parser.add_argument("--budget", type=float, default=470, help="seconds; no stage runs past them")
    parser.add_argument("--work", type=Path, default=Path("runs", "scaling-training"), help="folder of all stages")
    parser.add_argument("--out", type=Path, default=Path("bench", "results", "scaling", "training.json"))
    asked = parser.parse_args()
    if asked.tiny:
        asked.work, asked.out, asked.budget = asked.work / "tiny", asked.work / "tiny.json", 3600.0
    asked.work = asked.work.resolve()  # what is started runs elsewhere
    return asked


def stages_of(asked: argparse.Namespace) -> list[Stage]:
    """The most telling ones first."""
    found = [Stage("agreement", 600.0 if asked.tiny else 200.0, lambda limit: agreement(asked, limit))]
    for bench in benches(asked):
        found.append(Stage(bench.name, bench.seconds, lambda limit, bench=bench: measure(bench, asked, limit)))
    if not asked.tiny:
        found.append(Stage("agreement-compiled", 200.0, lambda limit: agreement_compiled(asked, limit)))
    only = [name for name in asked.only.split(",") if name]
    return [stage for stage in found if not only or stage.name in only]


def benches(asked: argparse.Namespace) -> list[Bench]:
    """Strong scaling shares the examples of one GPU's step; weak scaling gives each GPU as many."""
    count = asked.processes
    if asked.tiny:
        small, large, examples = "tiny", "tiny", 8
        common = "--device cpu --steps 1 --warm-up 1 --tokens-per-batch 2000"
    else:
        small, large, examples = "sdar-1.7b", "sdar-4b", 256
        common = "--steps 3 --warm-up 2"
    small, large = (f"--shape {shape} --lengths real {common}" for shape in (small, large))
    return [
        Bench("one", 1, f"{small} --examples {examples}", 150),
        Bench("fsdp-strong", count, f"{small} --examples {examples} --strategy fsdp", 150),
        Bench("4b-fsdp", count, f"{large} --examples {examples} --strategy fsdp", 180),
        Bench("ddp-strong", count, f"{small} --examples {examples} --strategy ddp", 120),
        Bench("fsdp-weak", count, f"{small} --examples {count * examples} --strategy fsdp", 120),
        Bench("ddp-weak", count, f"{small} --examples {count * examples} --strategy ddp", 120),
        Bench("fsdp-sharded", count, f"{small} --examples {examples} --strategy fsdp --gradients sharded", 120),
    ]


def measure(bench: Bench, asked: argparse.Namespace, limit: float) -> Result:
    """The row of one measurement."""
    file = asked.work / f"row-{bench.name}.json"
    file.unlink(missing_ok=True)
    command = ["bench", "train", *bench.options.split(), "--out", str(file)]
    start(["-m", "t3d.cli", *command], bench.processes, limit, asked.work, asked.tiny)
    written = json.loads(file.read_text())
    return {**written["rows"][0], "device": written["device"], "versions": written["versions"], "command": command}


# --- agreement ---


def agreement(asked: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Losses of the same training on other numbers of processes, and their largest distance to one process's."""
    work, end = asked.work / "agreement", time.monotonic() + limit
    shutil.rmtree(work, ignore_errors=True)
    rollouts = work / "rollouts"
    rollout = f"rollout --model story-mini --task story --limit 48 --max-new-tokens 64 --device cpu --out {rollouts}"
    start(["-m", "t3d.cli", *rollout.split()], 1, limit, asked.work, asked.tiny)
    changes: dict[str, dict[str, Any]] = {
        "one-fp32": {},
        "one-bf16": {"precision": "bf16"},
        "ddp-fp32": {"distributed": {"strategy": "ddp"}},
        "fsdp-fp32": SHARDED,
        "sharded-gradients-fp32": {"distributed": {"strategy": "fsdp", "gradients": "sharded"}},
        "offload-fp32": {**SHARDED, "reference": {"form": "offload", "refresh_every": 5}},
        "fsdp-bf16": {**SHARDED, "precision": "bf16"},
        "resumed-on-more-fp32": SHARDED,
        "resumed-on-one-fp32": {},
    }
    runs = {name: recipe_of(work, name, asked, **change) for name, change in changes.items()}
    together = [name for name in runs if not name.startswith(("one", "resumed-on-one"))]
    train([runs["one-fp32"], runs["one-bf16"]], 1, end, asked)
    cut_short(work / "one-fp32", work / "resumed-on-more-fp32")
    train([runs[name] for name in together], asked.processes, end, asked)
    cut_short(work / "fsdp-fp32", work / "resumed-on-one-fp32")
    train([runs["resumed-on-one-fp32"]], 1, end, asked)
    return compared(work, list(runs))


def agreement_compiled(asked: argparse.Namespace, limit: float) -> dict[str, Any]:
    """The same with FlexAttention and compiled layers, of which some are computed again, or as many as are measured."""
    work, end = asked.work / "agreement", time.monotonic() + limit
    if not (work / "one-bf16").exists():
        raise Failed("needs the stage agreement")
    changes = {"again-bf16": {"compute": {"checkpoint_layers": 2}}, "measured-bf16": {"compute": {}}}
    for name in changes:
        shutil.rmtree(work / name, ignore_errors=True)
    runs = [recipe_of(work, name, asked, precision="bf16", **SHARDED, **each) for name, each in changes.items()]
    train(runs, asked.processes, end, asked)
    return compared(work, ["one-bf16", *changes])


def recipe_of(work: Path, name: str, asked: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Twelve steps of T3D on a small model, the plain way unless `changes` say otherwise."""
    return {
        "model": {"source": "story-mini"},
        "objective": {"name": "t3d"},
        "data": {"trajectories": str(work / "rollouts"), "keep_unfinished": True},
        "optim": {"steps": STEPS, "examples_per_step": 17, "lr": 1e-4, "warmup_steps": 2},
        "batch": {"tokens_per_batch": 600},
        "reference": {"refresh_every": 5},
        "checkpoint": {"every_steps": RESUMED_AT, "keep": 5},
        "compute": {"attention": "sdpa", "compile": False},
        "tracking": {"to": []},
        "precision": "fp32",
        "log_every": 1,
        "device": "cpu" if asked.tiny else "cuda",
        "out": str(work / name),
        **changes,
    }


def train(recipes: Sequence[dict[str, Any]], processes: int, end: float, asked: argparse.Namespace) -> None:
    """Run recipes one after another in the same processes; those whose folder is there go on in it."""
    file = asked.work / "recipes.json"
    file.write_text(json.dumps(list(recipes)))
    program = (
        "import json, sys; from pathlib import Path; from t3d.config import make_recipe; "
        "from t3d.training import run_recipe\n"
        "for each in json.loads(Path(sys.argv[1]).read_text()):\n"
        "    run_recipe(make_recipe(each), resume=Path(each['out'], 'checkpoints').exists())\n"
    )
    script = asked.work / "train_all.py"
    script.write_text(program)
    start([str(script), str(file)], processes, end - time.monotonic(), asked.work, asked.tiny)


def cut_short(whole: Path, copied: Path) -> None:
    """A copy of a run as it was when its first checkpoint had been written."""
    shutil.copytree(whole, copied)
    for left in ("model", "outcome.json", f"checkpoints/step-{STEPS:06d}"):
        path = copied / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def compared(work: Path, names: Iterable[str]) -> dict[str, Any]:
    """Losses by run, and each run's largest distance to that of one process in its precision.

    It `failed` if one is further from it than rounding goes.
    """
    losses = {name: [line["loss"] for line in metrics_of(work / name)] for name in names}
    distances = {}
    for name, own in losses.items():
        alone = losses[f"one-{precision_of(name)}"]
        assert len(own) == len(alone) == STEPS, f"{name}: {len(own)} steps"
        distances[name] = max(abs(left - right) / abs(right) for left, right in zip(own, alone, strict=True))
    found = {"distances": distances, "losses": losses, "tolerance": TOLERANCE}
    far = {name: distance for name, distance in distances.items() if distance > TOLERANCE[precision_of(name)]}
    return {**found, "failed": f"losses are too far from one process's: {far}"} if far else found


def precision_of(name: str) -> str:
    """Of a run by its name."""
    return name.rpartition("-")[2]


def metrics_of(out: Path) -> list[dict[str, float]]:
    """Of every optimizer step."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- what people see ---


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """The short table."""
    lines = [f"{'stage':<24}{'GPUs':>5}{'s/step':>9}{'examples/s':>12}{'x one':>8}{'MFU':>8}  peak GiB"]
    one = results.get("one", {})
    for name, row in results.items():
        if "failed" in row:
            lines.append(f"{name:<24}FAILED: {row['failed'].splitlines()[0]}")
        elif name.startswith("agreement"):
            worst = max(row["distances"], key=row["distances"].__getitem__)
            lines.append(f"{name:<24}holds: losses at most {row['distances'][worst]:.1e} apart ({worst})")
        else:
            same = one.get("shape") == row["shape"] and not name.startswith("4b")
            faster = f"{row['examples_per_second'] / one['examples_per_second']:.2f}" if same else "-"
            mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
            peaks = ", ".join(f"{peak:.1f}" for peak in row["peak_gib_by_process"] or ())
            lines.append(
                f"{name:<24}{row['processes']:>5}{row['seconds_per_step']:>9.3f}{row['examples_per_second']:>12.2f}"
                f"{faster:>8}{mfu:>8}  {peaks or '-'}"
            )
    return lines


if __name__ == "__main__":
    main()

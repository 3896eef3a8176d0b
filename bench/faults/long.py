"""Long runs: does anything grow? Tiny answers and tiny training steps by the hundred thousand, watched from outside.

    python bench/faults/long.py --out bench/results/faults/long.json --plot docs/long-runs.svg

Rolls out with a tiny random model, then trains it on what came out, by the commands that everybody uses. Meanwhile
each process's memory, open files, threads, CPU time and finished work are noted four times a second. The second
tenth of the work, when all is warm, is compared with the last one. Speed is work by CPU time, so that what else the
machine does has little say. Exit code 1 if anything grows, slows down or is missing. `--answers 12000 --steps 400` is a
quick look; `--only` does one of the two, and leaves what the file says of the other.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, median_low
from typing import Any, NamedTuple

import psutil
import yaml

from t3d.files import write_whole
from t3d.models import load_tokenizer, random_model, save_model
from t3d.trajectories.manifest import finished_shards, load_manifest
from t3d.versions import versions

SHAPES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "block_size": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
MOST_ROWS_PER_SHARD = 512
SECONDS_BETWEEN_SAMPLES = 0.25
SAMPLES_KEPT = 200
"""Of each run, in the file."""
MOST_GROWTH_MB = 16.0
"""From the second tenth of the work to the last; the allocator's own comings and goings are a few."""
LEAST_SPEED = 0.75
"""Of the last tenth, as a share of the second one's: on a busy machine CPU seconds differ too, caches are shared."""
COMMAND = (sys.executable, "-c", "import sys; from t3d.cli import run; sys.exit(run(sys.argv[1:]))")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Sample(NamedTuple):
    """One look at a process: seconds since it began, finished work, MB of memory, and so on."""

    seconds: float
    done: int
    memory_mb: float
    files: int
    threads: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Tenth:
    """What the samples of one tenth of the work say: medians, so that a moment's file and thread do not count."""

    memory_mb: float
    files: int
    threads: int
    per_cpu_second: float
    per_second: float


def main() -> None:
    """Run, compare, write."""
    arguments = _arguments()
    found: dict[str, Any] = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, arguments.answers)
        if arguments.only != "train":
            found["rollout"] = watch_rollout(folder, arguments.answers)
        else:
            watch_rollout(folder, min(arguments.answers, 20 * MOST_ROWS_PER_SHARD))
        if arguments.only != "rollout":
            found["train"] = watch_training(folder, arguments.steps)
    done = {name: found[name] for name in ("rollout", "train") if name in found}
    rules = {"most_growth_mb": MOST_GROWTH_MB, "least_speed": LEAST_SPEED, "cores": os.cpu_count()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out, json.dumps({**rules, "versions": versions(), "runs": done}) + "\n")
    if arguments.plot is not None:
        write_whole(arguments.plot, picture(done))
    print(table(done))
    sys.exit(0 if all(run["lost"] == 0 and not run["grew"] for run in done.values()) else 1)


def make_inputs(folder: Path, num_prompts: int) -> None:
    """A tiny random model, and prompts of a few tokens each."""
    tokenizer = load_tokenizer("story-tokenizer")
    save_model(random_model(SHAPES, tokenizer, seed=0), folder / "model", tokenizer)
    with (folder / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"{n % 97} and {n % 89}"}) + "\n" for n in range(num_prompts))


def watch_rollout(folder: Path, num_answers: int) -> dict[str, Any]:
    """Roll out so many answers of one block; what is lost are rows that no shard holds."""
    out, rows_per_shard = folder / "rows", min(MOST_ROWS_PER_SHARD, -(-num_answers // 50))
    words = f"rollout --model {folder / 'model'} --prompts {folder / 'prompts.jsonl'} --prompt-style raw --out {out}"
    words += f" --limit {num_answers} --max-new-tokens 4 --steps-per-block 2 --temperature 1 --batch-size 256"
    words += f" --rows-per-shard {rows_per_shard} --device cpu"

    def done() -> int:
        shards = sum(name.endswith(".parquet") for name in os.listdir(out)) if out.exists() else 0
        return min(shards * rows_per_shard, num_answers)

    samples = watch(words.split(), done)
    num_rows = sum(finished_shards(out, load_manifest(out)).values())
    return record(samples, num_answers, lost=num_answers - num_rows)


def watch_training(folder: Path, num_steps: int) -> dict[str, Any]:
    """Train so many steps with metrics of each, checkpoints and evaluations; what is lost are steps without metrics."""
    recipe = {
        "model": {"source": str(folder / "model")},
        "objective": {"name": "t3d"},
        "data": {"trajectories": str(folder / "rows"), "keep_unfinished": True},
        "optim": {"steps": num_steps, "examples_per_step": 4, "lr": 1e-3},
        "batch": {"tokens_per_batch": 256},
        "checkpoint": {"every_steps": max(1, num_steps // 100)},
        "evaluation": {
            "every_steps": max(1, num_steps // 40),
            "limit": 4,
            "tokens_per_step": [4],
            "max_new_tokens": 4,
        },
        "log_every": 1,
        "device": "cpu",
        "out": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    metrics = folder / "run" / "metrics.jsonl"
    samples = watch(["train", str(folder / "recipe.yaml")], lambda: last_step(metrics))
    steps = {json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line}
    return record(samples, num_steps, lost=num_steps - len(steps))


def last_step(metrics: Path) -> int:
    """Of the last whole line of a log that is being written."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = [line for line in file.read().splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def watch(words: Sequence[str], done: Callable[[], int]) -> list[Sample]:
    """Run a command to its end, and look at it every so many seconds.

    Raises:
        RuntimeError: it failed.
    """
    samples, begin = [], time.monotonic()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*COMMAND, *words], env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        looked_at = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                samples.append(look(looked_at, time.monotonic() - begin, done()))
            except psutil.Error:  # it ended just now
                break
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        if process.wait() != 0:
            errors.seek(0)
            raise RuntimeError(errors.read().decode(errors="replace")[-2000:])
    return samples


def look(process: psutil.Process, seconds: float, done: int) -> Sample:
    """What a process holds at this moment."""
    with process.oneshot():
        times = process.cpu_times()
        return Sample(
            seconds=round(seconds, 2),
            done=done,
            memory_mb=round(process.memory_info().rss / 1e6, 1),
            files=process.num_fds(),
            threads=process.num_threads(),
            cpu_seconds=round(times.user + times.system, 2),
        )


def record(samples: Sequence[Sample], total: int, lost: int) -> dict[str, Any]:
    """The file's part about one run."""
    early, late = tenth(samples, total, 0.1), tenth(samples, total, 0.9)
    return {
        "total": total,
        "lost": lost,
        "seconds": samples[-1].seconds,
        "second_tenth": asdict(early),
        "last_tenth": asdict(late),
        "grew": grown(early, late),
        "columns": Sample._fields,
        "samples": [list(each) for each in samples[:: -(-len(samples) // SAMPLES_KEPT)]],
    }


def tenth(samples: Sequence[Sample], total: int, start: float) -> Tenth:
    """The tenth of the work that begins after a share of it.

    Raises:
        RuntimeError: the run was too short to tell.
    """
    # without the moment in which all is done: from then on the process only tidies up
    inside = [each for each in samples if start * total <= each.done <= (start + 0.1) * total and each.done < total]
    if len(inside) < 2 or inside[0].done == inside[-1].done:
        raise RuntimeError(f"fewer than two samples between {start:.0%} and {start + 0.1:.0%}: the run is too short")
    first, last = inside[0], inside[-1]
    work = last.done - first.done
    return Tenth(
        memory_mb=median(each.memory_mb for each in inside),
        files=median_low(each.files for each in inside),
        threads=median_low(each.threads for each in inside),
        per_cpu_second=round(work / (last.cpu_seconds - first.cpu_seconds), 1),
        per_second=round(work / (last.seconds - first.seconds), 1),
    )


def grown(early: Tenth, late: Tenth) -> list[str]:
    """What is not flat."""
    checks = {
        "memory": late.memory_mb > early.memory_mb + MOST_GROWTH_MB,
        "files": late.files > early.files,
        "threads": late.threads > early.threads,
        "time": late.per_cpu_second < LEAST_SPEED * early.per_cpu_second,
    }
    return [name for name, is_so in checks.items() if is_so]


def table(runs: dict[str, Any]) -> str:
    """The result in words, a line a run."""
    lines = []
    for name, run in runs.items():
        early, late = run["second_tenth"], run["last_tenth"]
        pairs = "  ".join(f"{key} {early[key]:g} -> {late[key]:g}" for key in early)
        verdict = f"GREW: {', '.join(run['grew'])}" if run["grew"] else "flat"
        lines.append(f"{name}: {run['total']:,} in {run['seconds']:.0f} s, lost {run['lost']}  {pairs}  {verdict}")
    return "\n".join(lines)


def picture(runs: dict[str, Any]) -> bytes:
    """SVG: memory and speed over the work, a column a run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6 * len(runs), 4.4), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharex="col")
    units = {"rollout": "answers", "train": "steps"}
    for (name, run), (memory, speed) in zip(runs.items(), axes.T, strict=True):
        samples = [Sample(*each) for each in run["samples"]]
        busy = [each for each in samples if each.done > 0]
        memory.plot([each.done for each in busy], [each.memory_mb for each in busy], color="#0072B2")
        memory.set(title=f"{name}: {run['total']:,} {units[name]}", ylabel="memory, MB")
        pairs = [pair for pair in zip(busy, busy[4:], strict=False) if pair[1].cpu_seconds > pair[0].cpu_seconds]
        rates = [(b.done - a.done) / (b.cpu_seconds - a.cpu_seconds) for a, b in pairs]
        speed.plot([b.done for _, b in pairs], rates, color="#D55E00")
        speed.set(xlabel=f"{units[name]} done", ylabel=f"{units[name]} a CPU second")
        speed.xaxis.set_major_locator(MaxNLocator(4))
        for each in (memory, speed):
            each.set_ylim(bottom=0)
            each.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="SVG")
    parser.add_argument("--answers", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--only", choices=("rollout", "train"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

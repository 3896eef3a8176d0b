"""Rolling out on one GPU and on several: how much faster, and are the rows the same.

    python bench/scaling/rollout.py             # one machine, two GPUs, some three minutes
    python bench/scaling/rollout.py --tiny      # the same on the CPU with a tiny model, to see it work

A model of SDAR-1.7B's shapes with random weights answers the same prompts in one process and in several under torchrun
(`rollout_part.py`), each of which takes its shards as `t3d rollout` does. The clock runs from when all processes have
loaded and warmed up (kernels are compiled, graphs made) until the last shard of the last process is on disk. A stage's
result stays in --work: a second call with the same options goes on where the first one stopped, and what failed is
tried again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from stages import Failed, Result, Stage, run_stages, start

PART = Path(__file__).with_name("rollout_part.py")


def main() -> None:
    """Measure what was not measured yet, write it down and show it."""
    asked = arguments()
    settings = {"processes": asked.processes, "shards": asked.shards, "tiny": asked.tiny}
    results = run_stages(stages_of(asked), settings, asked.work, asked.out, asked.budget)
    print("\n".join(table(results)))
    sys.exit(any("failed" in result for result in results.values()))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Rolling out on one GPU and on several.")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--processes", type=int, default=2, help="GPUs to compare with one")
    parser.add_argument("--shards", type=int, default=6, help="of 1,024 answers; shared out evenly")
    parser.add_argument("--budget", type=float, default=235, help="seconds; no stage runs past them")
    parser.add_argument("--work", type=Path, default=Path("runs", "scaling-rollout"), help="folder of all stages")
    parser.add_argument("--out", type=Path, default=Path("bench", "results", "scaling", "rollout.json"))
    asked = parser.parse_args()
    if asked.processes < 2 or asked.shards % asked.processes:
        parser.error(f"--shards {asked.shards} cannot be shared out evenly among --processes {asked.processes}")
    if asked.tiny:
        asked.work, asked.out, asked.budget = asked.work / "tiny", asked.work / "tiny.json", 900.0
    asked.work, asked.out = asked.work.resolve(), asked.out.resolve()
    return asked


def stages_of(asked: argparse.Namespace) -> list[Stage]:
    """One process, several, and whether they did the same."""
    return [
        Stage("one", 170.0, lambda limit: measure("one", 1, asked, limit)),
        Stage("several", 130.0, lambda limit: measure("several", asked.processes, asked, limit)),
        Stage("rows", 60.0, lambda limit: compare(asked.work / "one", asked.work / "several")),
    ]


def measure(name: str, processes: int, asked: argparse.Namespace, limit: float) -> Result:
    """A rollout by so many processes: what all of them did, and how long it took from when all were ready."""
    folder = asked.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    program = [str(PART), str(folder), str(asked.shards), *(["--tiny"] if asked.tiny else [])]
    start(program, processes, limit, asked.work, asked.tiny)
    parts = [json.loads((folder / f"part-{index}.json").read_text()) for index in range(processes)]
    seconds, tokens = max(part["seconds_of_all"] for part in parts), sum(part["tokens"] for part in parts)
    return {
        "processes": processes,
        "rows": sum(part["rows"] for part in parts),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds, 1),
        "load_seconds": max(part["load_seconds"] for part in parts),
        "warm_up_seconds": max(part["warm_up_seconds"] for part in parts),
        "parts": parts,
    }


def compare(one: Path, several: Path) -> Result:
    """How many rows are not the same: in their tokens or reveal steps, or in their confidences alone."""
    from t3d.trajectories import count, read

    folders = [folder / "rollout" for folder in (one, several)]
    if any(not folder.exists() or not (folder.parent / "part-0.json").exists() for folder in folders):
        raise Failed("needs the other stages")
    if (counts := [count(folder) for folder in folders])[0] != counts[1]:
        raise Failed(f"{counts[0]} rows by one process, {counts[1]} by several")
    differing = in_confidence = 0
    for left, right in zip(*map(read, folders), strict=True):
        if left != right:
            in_confidence += (same := left == replace(right, confidence=left.confidence))
            differing += not same
    found = {"rows": counts[0], "differ": differing, "differ_in_confidence_only": in_confidence}
    return {**found, "failed": f"{differing} of {counts[0]} rows differ"} if differing else found


def table(results: dict[str, Result]) -> list[str]:
    """The short table."""
    lines = [f"{'stage':<10}{'GPUs':>5}{'rows':>8}{'seconds':>9}{'tokens/s':>11}{'x one':>7}  load + warm-up, s"]
    one = results["one"].get("tokens_per_second")
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"{name:<10}FAILED: {found['failed'].splitlines()[0]}")
        elif name == "rows":
            lines.append(
                f"{name:<10}all {found['rows']} are the same"
                f" ({found['differ_in_confidence_only']} in all but the last bits of their confidences)"
            )
        else:
            pace, start_up = found["tokens_per_second"], found["load_seconds"] + found["warm_up_seconds"]
            faster = f"{pace / one:.2f}" if one else "-"
            lines.append(
                f"{name:<10}{found['processes']:>5}{found['rows']:>8}{found['seconds']:>9.1f}{pace:>11,.0f}{faster:>7}"
                f"  {start_up:.1f}"
            )
    return lines


if __name__ == "__main__":
    main()

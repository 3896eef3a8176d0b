"""What `t3d doctor` predicts beside what was measured.

    python bench/scaling/doctor_check.py      # writes bench/results/scaling/doctor.json; no GPU, some ten seconds

Speeds are predicted from the other measurements alone, never from a run's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.bench import TrainPlan
from t3d.config import Recipe
from t3d.doctor.gpus import Cluster, gpu_called
from t3d.doctor.measured import COPY_SHARE, ROLLOUTS, TrainingPoint, seconds_per_answer_token
from t3d.doctor.memory import Memory, memory_of_step
from t3d.doctor.seconds import adapter_traffic, recomputed_flops, step_flops, time_of_step, update_bytes
from t3d.doctor.subject import Weight, student_on_paper, weights_of
from t3d.doctor.workload import StepWork, rows_of, step_work
from t3d.models import BlockDiffusionConfig
from t3d.training.parallel.strategy import with_strategy_for

RESULTS = Path(__file__).resolve().parents[1] / "results"
GIB = 2**30
NOTE = (
    "error: predicted over measured, less one. Memory: torch's peak; a run under a limit is predicted under it. No "
    "figure of it is fitted, but what a layer keeps was written down with these runs in sight. Seconds: of an "
    "optimizer step, with the layers to compute again that were predicted, the GPU's efficiency taken from the other "
    "runs: those of the same kind (all weights, or adapters), or all where there is no other; which bytes adapters "
    "move was settled with the one such run in sight. Rollouts: microseconds an answer token of 256 requests at "
    "once, from the other model alone; of the full queue, whose contexts are longer, from batches of the same model."
)


@dataclass(frozen=True, slots=True)
class Case:
    """One measured training, and all that a prediction of it may know.

    Attributes:
        file: in bench/results, with the run's name where it holds several.
        measured: its row.
        recipe, config, weights, work: on paper.
        cluster: that it ran on.
    """

    file: str
    measured: Mapping[str, Any]
    recipe: Recipe
    config: BlockDiffusionConfig
    weights: Sequence[Weight]
    work: StepWork
    cluster: Cluster

    def memory(self) -> Memory:
        """Predicted; under the limit of the run, if it had one."""
        limit = self.measured["memory_limit_gib"]
        capacity = self.cluster.gpu.memory_bytes if limit is None else int(limit * GIB)
        context = None if limit is None else 0  # a limit is on what torch holds
        count = self.cluster.num_gpus
        return memory_of_step(self.recipe, self.config, self.weights, self.work, capacity, count, context)

    def point(self) -> TrainingPoint:
        """What the measurement says of the GPU's efficiency."""
        row, gpu, own = self.measured, self.cluster.gpu, self.work.own
        layers = row["checkpoint_layers"]
        done = step_flops(self.recipe, self.config, own) + recomputed_flops(self.config, own, layers)
        moved = adapter_traffic(self.recipe, self.config, self.weights, own, layers)
        moved += update_bytes(self.recipe, self.weights)
        seconds = row["seconds_per_step"] - moved / (COPY_SHARE * gpu.bytes_per_second)
        return TrainingPoint(
            self.file, self.config.hidden_size, row["adapter"] is not None, done / seconds / gpu.peak_flops
        )

    def seconds(self, points: Sequence[TrainingPoint]) -> float:
        """Predicted from other measurements."""
        count = self.memory().checkpointed
        return time_of_step(self.recipe, self.config, self.weights, self.work, count, self.cluster, points).seconds


def main() -> None:
    """Write the comparison, and show it."""
    parser = argparse.ArgumentParser(description="Predicted against measured.")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling" / "doctor.json")
    out = parser.parse_args().out
    rows = compared(cases())
    command = "python bench/scaling/doctor_check.py"
    out.write_text(json.dumps({"command": command, "note": NOTE, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['file']:<34}{row['what']:<26}{row['predicted']:>10.4g}{row['measured']:>10.4g}{row['error']:>+8.1%}"
        )


def compared(found: Sequence[Case]) -> list[dict[str, Any]]:
    """One row a figure."""
    rows = []
    points = [case.point() for case in found if case.cluster.num_gpus == 1]
    for case in found:
        memory, row = case.memory(), case.measured
        others = [point for point in points if point.file != case.file]
        rows.append(_row(case.file, "peak GiB", memory.peak / GIB, row["peak_gib"]))
        rows.append(_row(case.file, "seconds a step", case.seconds(others), row["seconds_per_step"]))
        if row["checkpoint_layers"]:
            rows.append(_row(case.file, "layers computed again", memory.checkpointed, row["checkpoint_layers"]))
    return [*rows, *_rollouts()]


def cases() -> list[Case]:
    """Every training that was measured on a GPU whose facts are known."""
    return [_case(file, row, str(content["device"])) for file, content in _training_files() for row in content["rows"]]


def _training_files() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(RESULTS.glob("train-*.json")):
        yield file.name, json.loads(file.read_text())
    several = RESULTS / "scaling" / "training.json"
    stages = json.loads(several.read_text()) if several.exists() else {}
    for name, row in stages.items():
        if "shape" in row:
            yield f"scaling/training.json {name}", {"device": row["device"], "rows": [row]}


def _case(file: str, row: Mapping[str, Any], device: str) -> Case:
    gpu = gpu_called(device)
    assert gpu is not None, f"{file}: the facts of {device} are not known"
    count = row.get("processes", 1)
    kept = ("shape", "lengths", "objective", "precision", "optimizer", "adapter", "rank", "quantize", "reference")
    asked = {name: row[name] for name in kept} | {"tokens_per_batch": row["tokens_per_batch"]}
    if row["adapter"] is None and row["reference"] == "copy":
        asked["reference"] = None
    plan = TrainPlan(
        **asked,
        examples=row["examples_per_step"],
        block_size=row["block_size"],
        strategy=row.get("strategy"),
        gradients=row.get("gradients"),
        device="cpu",
    )
    config, recipe = plan.check()
    weights = weights_of(student_on_paper(recipe, config).model)
    recipe = with_strategy_for(recipe, sum(each.numel for each in weights), count, gpu.memory_bytes)
    # the step whose figures the row has: the first one of those timed that asks for as much
    works = (step_work(recipe, config, rows_of(plan.lengths, recipe, config, number), count) for number in range(3, 6))
    wanted = 1e12 * row["tflop_per_example"] * plan.examples
    work = min(works, key=lambda each: abs(step_flops(recipe, config, each.whole) - wanted))
    return Case(file, row, recipe, config, weights, work, Cluster(gpu, count))


def _rollouts() -> Iterator[dict[str, Any]]:
    for point in ROLLOUTS:
        others = [other for other in ROLLOUTS if other is not point]
        for steps, rate in zip(point.steps, point.tokens_per_second, strict=True):
            predicted = seconds_per_answer_token(point.layer_weights, steps, others)
            yield _row(point.file, f"us a token, T = {steps}", 1e6 * predicted, 1e6 / rate)
    file = "rollout-sdar-1.7b-queue.json"
    row = json.loads((RESULTS / file).read_text())["rows"][0]
    own = ROLLOUTS[0]
    predicted = seconds_per_answer_token(own.layer_weights, row["steps_per_block"], [own])
    yield _row(file, "us a token, T = 1", 1e6 * predicted, 1e6 / row["tokens_per_second"])


def _row(file: str, what: str, predicted: float, measured: float) -> dict[str, Any]:
    return {
        "file": file,
        "what": what,
        "predicted": predicted,
        "measured": measured,
        "error": predicted / measured - 1,
    }


if __name__ == "__main__":
    main()

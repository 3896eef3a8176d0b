"""Distil a student on the built-in task and measure it: one or more rounds of roll out, train, evaluate.

    python bench/story_student.py --teacher story-small --out runs/student objective.name=t3d objective.path_weight=1

Round 1 rolls out the teacher; each later round rolls out the current student on fresh prompts (design: rounds).
After each round the student is scored on validation problems; the last one also on the test problems. The result is
one JSON file with every setting, time and figure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import torch
import yaml

from t3d import Decoding
from t3d.config import make_recipe
from t3d.engine import Engine
from t3d.evaluation import EvalResult, evaluate, get_benchmark, settings_to_try
from t3d.evaluation.benchmarks import Benchmark
from t3d.tasks import get_task
from t3d.training import train
from t3d.trajectories import rollout
from t3d.versions import versions

DECODING = Decoding(max_new_tokens=160)
VALIDATION = Benchmark("story-validation", task="story", split="validation", max_new_tokens=160, default_limit=500)


def main() -> None:
    """Parse arguments, run the rounds, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="story-small")
    parser.add_argument("--out", type=Path, required=True, help="folder for trajectories and models")
    parser.add_argument("--result", type=Path, help="JSON file; default: OUT/result.json")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=10_000, help="a round")
    parser.add_argument("--test-problems", type=int, default=1000)
    parser.add_argument("overrides", nargs="*", help="key=value of the training recipe")
    arguments = parser.parse_args()
    result = run_rounds(arguments)
    file = arguments.result or arguments.out / "result.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result))


def run_rounds(arguments: argparse.Namespace) -> dict[str, object]:
    """All rounds; the teacher is measured first, on the same problems."""
    current = arguments.teacher
    engine = Engine.from_pretrained(current, dtype="float32")
    test = get_benchmark("story")
    record: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python " + " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(),
        "teacher_test": scores(measure(engine, test, arguments.test_problems)),
    }
    rounds = []
    for number in range(1, arguments.rounds + 1):
        folder = arguments.out / f"round-{number}"
        started = time.monotonic()
        prompts = get_task("story").prompts("train", arguments.rollouts, seed=number)
        decoding = Decoding(temperature=0.1, max_new_tokens=160, seed=number)
        rollout(engine, prompts, decoding, folder / "trajectories", model_name=str(current))
        rolled_out = time.monotonic()
        train(make_recipe(recipe_fields(arguments, str(current), folder, number)))
        trained = time.monotonic()
        current = str(folder / "training" / "model")
        engine = Engine.from_pretrained(current, dtype="float32")
        rounds.append(
            {
                "round": number,
                "rollout_seconds": rolled_out - started,
                "train_seconds": trained - rolled_out,
                "validation": scores(measure(engine, VALIDATION, 500)),
            }
        )
        print(f"round {number}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    record["rounds"] = rounds
    record["student_test"] = scores(measure(engine, test, arguments.test_problems, thresholds=(0.9,)))
    return record


def recipe_fields(arguments: argparse.Namespace, model: str, folder: Path, seed: int) -> dict:
    """The round's recipe, with the command line's overrides."""
    fields: dict = {
        "model": {"source": model},
        "objective": {"name": "t3d"},
        "data": {"trajectories": str(folder / "trajectories")},
        "optim": {"steps": 300, "examples_per_step": 128, "lr": 3e-4, "warmup_steps": 20},
        "batch": {"tokens_per_batch": 65_536, "num_workers": 3},
        "seed": seed,
        "out": str(folder / "training"),
    }
    for override in arguments.overrides:
        key, _, value = override.partition("=")
        *parents, last = key.split(".")
        group = fields
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = yaml.safe_load(value)
    return fields


def measure(engine: Engine, benchmark: Benchmark, limit: int, thresholds: tuple[float, ...] = ()) -> EvalResult:
    """Accuracy at 1, 2 and 4 tokens per step, and under the dynamic rule."""
    settings = settings_to_try((1, 2, 4), thresholds, DECODING, engine.model.config.block_size)
    return evaluate(engine, benchmark, settings, name=benchmark.name, model="", limit=limit)


def scores(result: EvalResult) -> dict[str, dict[str, object]]:
    """The figures worth keeping, by setting."""
    return {
        each.label: {
            "accuracy": each.accuracy,
            "interval": each.interval,
            "tokens_per_forward": each.tokens_per_forward,
            "num_problems": each.num_problems,
        }
        for each in result.settings
    }


def summary(result: dict) -> str:
    """Accuracies in a line each."""

    def line(name: str, figures: dict) -> str:
        return f"{name:<16}" + " / ".join(f"{100 * each['accuracy']:.1f}" for each in figures.values())

    lines = [line("teacher, test", result["teacher_test"])]
    for each in result["rounds"]:
        seconds = f"   roll out {each['rollout_seconds']:.0f} s, train {each['train_seconds']:.0f} s"
        lines.append(line(f"round {each['round']}, valid.", each["validation"]) + seconds)
    return "\n".join([*lines, line("student, test", result["student_test"])])


if __name__ == "__main__":
    main()

"""Distil a student on the built-in task and measure it after every round.

    python bench/story_student.py --teacher story-small --out runs/student objective.path_weight=1

Round 1 rolls out the teacher; each later round rolls out the current student on fresh prompts (`rounds:` of a recipe).
Each round's student is scored on validation problems, teacher and last student also on test problems. The result is one
JSON file with every setting, time and figure; a run that was cut off goes on with --resume.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from t3d import Decoding
from t3d.config import Recipe, apply_override, make_recipe
from t3d.engine import Engine
from t3d.evaluation import EvalResult, evaluate, get_benchmark, settings_to_try
from t3d.evaluation.benchmarks import Benchmark
from t3d.models import as_device, device_name
from t3d.training import train
from t3d.versions import versions

DECODING = Decoding(max_new_tokens=160)
TEST = get_benchmark("story")
VALIDATION = replace(TEST, split="validation")


def main() -> None:
    """Parse arguments, run the rounds, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="story-small")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--result", type=Path, help="JSON file; default: OUT/result.json")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=10_000, help="a round")
    parser.add_argument("--test-problems", type=int, default=1000)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe")
    arguments = parser.parse_args()
    recipe = recipe_of(arguments)
    train(recipe, resume=arguments.resume)
    result = measured(recipe, arguments.test_problems)
    file = arguments.result or arguments.out / "result.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result))


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Equal rounds, with the command line's overrides."""
    rollout = {"task": "story", "count": arguments.rollouts, "max_new_tokens": 160, "dtype": "float32"}
    fields: dict[str, Any] = {
        "model": {"source": arguments.teacher},
        "objective": {"name": "t3d"},
        "rounds": [{"rollout": dict(rollout)} for _ in range(arguments.rounds)],
        "optim": {"steps": 300, "examples_per_step": 128, "lr": 3e-4, "warmup_steps": 20},
        "batch": {"tokens_per_batch": 65_536, "num_workers": 3},
        "out": str(arguments.out),
    }
    for override in arguments.overrides:
        apply_override(fields, override)
    return make_recipe(fields)


def measured(recipe: Recipe, test_problems: int) -> dict[str, Any]:
    """Times and scores of a finished run."""
    out = Path(recipe.out)
    finished = json.loads((out / "rounds.json").read_text())["finished"]
    rounds = [
        {
            "round": number,
            "rollout_seconds": sum(
                finished.get(f"round-{number}/{folder}", {"seconds": 0.0})["seconds"]
                for folder in ("trajectories", "full-step")
            ),
            "train_seconds": finished[f"round-{number}/training"]["seconds"],
            "validation": scores(out / f"round-{number}" / "training" / "model", VALIDATION, 500),
        }
        for number in range(1, len(recipe.rounds) + 1)
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python " + " ".join(sys.argv),
        "device": device_name(as_device(None)),
        "versions": versions(),
        "teacher_test": scores(recipe.model.source or out / "teacher", TEST, test_problems),
        "rounds": rounds,
        "student_test": scores(out / "model", TEST, test_problems, thresholds=(0.9,)),
    }


def scores(
    model: str | Path, benchmark: Benchmark, limit: int, thresholds: tuple[float, ...] = ()
) -> dict[str, dict[str, object]]:
    """Accuracy at 1, 2 and 4 tokens per step, and under the dynamic rule: the figures worth keeping, by setting."""
    engine = Engine.from_pretrained(model, dtype="float32")
    settings = settings_to_try((1, 2, 4), thresholds, DECODING, engine.model.config.block_size)
    result: EvalResult = evaluate(engine, benchmark, settings, name=benchmark.name, model=str(model), limit=limit)
    return {
        each.label: {
            "accuracy": each.accuracy,
            "interval": each.interval,
            "tokens_per_forward": each.tokens_per_forward,
            "num_problems": each.num_problems,
        }
        for each in result.settings
    }


def summary(result: dict[str, Any]) -> str:
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

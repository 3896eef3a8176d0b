"""The recipes of recipes/sdar at their true shapes: random weights, a short rollout, two optimizer steps of each.

    python bench/recipes.py                   # all sixteen, one GPU of 141 GB; bench/results/recipes-h200.json
    python bench/recipes.py --only 4b-math    # those whose names hold this
    python bench/recipes.py --shape tiny      # the same on the CPU with a tiny model, to see it work

A model's answers in blocks of 4 and of 8 are decoded once, from prompts of random tokens, and all its recipes learn
from them. Of a recipe everything holds as it is written but `optim.steps` (two; and what --examples says): the first
step compiles, the second is timed. Beside it stands what `t3d doctor` predicts for just this step on this GPU. A second
call goes on where the first one stopped, and what failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t3d import Decoding, Engine
from t3d.bench.lengths import LENGTHS
from t3d.bench.result_file import peak_memory_gib, shown
from t3d.bench.shapes import build_model, random_ids, shape_config
from t3d.bench.timing import free_memory, wait_for
from t3d.config import Recipe, load_recipe
from t3d.corruption import TrainingRow
from t3d.doctor.gpus import Cluster, gpu_called
from t3d.doctor.subject import Subject, released_config
from t3d.doctor.training import Training, plan_training
from t3d.files import write_whole
from t3d.models import BlockDiffusionConfig, BlockDiffusionModel, active_parameters, device_name
from t3d.objectives import build_objective
from t3d.training.data import Share, StepDataset
from t3d.training.device import prepare_device
from t3d.training.learner import Learner
from t3d.training.student import make_student, weightless
from t3d.versions import versions

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "recipes" / "sdar").glob("*/*.yaml"))
SHORTEST_ANSWER, LONGEST_ANSWER = 64, 256
"""Tokens: random weights find no stop token, so that each answer is as long as it is asked to be."""
GIB = 2**30
NOTE = (
    "Random weights of the released shapes, their LM head not tied. Every recipe as written but for steps (two) and "
    "examples_per_step, if that is not 256. first_seconds: with compiling and the choice of layers to compute again; "
    "seconds: of the second step, on the same rows. predicted: by t3d doctor for this very step. peak_gib: most that "
    "torch reserved; its prediction leaves driver and libraries out. Answers have 64 to 256 tokens, evenly."
)


@dataclass(frozen=True)
class Trial:
    """A recipe to run.

    Attributes:
        name: set and file, such as paper/1.7b-math-block4.
        recipe: as written.
        shape: that stands for its model.
        block_size: that its answers are decoded in.
    """

    name: str
    recipe: Recipe
    shape: str
    block_size: int


def main() -> None:
    """Run what has no result yet, write each one down at once, and show all of them."""
    asked = arguments()
    device = torch.device("cpu" if asked.shape == "tiny" else "cuda")
    facts = {"shape": asked.shape, "examples_per_step": asked.examples, "device": device_name(device)}
    results = earlier_results(asked.out, facts)
    wanted = [trial for trial in trials(asked.shape) if asked.only in trial.name]
    left = [trial for trial in wanted if "seconds" not in results.get(trial.name, {})]
    for name, result in run_trials(left, asked.examples, device, asked.budget):
        results[name] = result
        write_down(asked.out, facts, results)
    print("\n".join(table(results)))
    missing = [trial.name for trial in wanted if "seconds" not in results.get(trial.name, {})]
    if missing:
        print(f"not done: {', '.join(missing)}; the same command goes on")
    sys.exit(bool(missing))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The recipes of recipes/sdar at their true shapes.")
    parser.add_argument("--shape", choices=("true", "tiny"), default="true", help="of the models")
    parser.add_argument("--only", default="", help="part of the names of those to run")
    parser.add_argument("--examples", type=int, default=256, help="of an optimizer step; the recipes' own are 256")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no other recipe is begun")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default: bench/results/recipes-h200.json")
    asked = parser.parse_args()
    if asked.examples < 1:
        parser.error(f"--examples {asked.examples}: must be at least 1")
    usual = ROOT / "bench" / "results" / "recipes-h200.json"
    asked.out = asked.out or (usual if asked.shape == "true" else Path("runs", "recipes-tiny.json"))
    return asked


def trials(shape: str) -> list[Trial]:
    """One for each file; those of one model and block stand together, for they share its answers."""
    found = []
    for file in FILES:
        model, _, block = file.stem.split("-")
        own = shape if shape == "tiny" else f"sdar-{model}"
        found.append(Trial(f"{file.parent.name}/{file.stem}", load_recipe(file), own, int(block.removeprefix("block"))))
    return sorted(found, key=lambda trial: (trial.recipe.model.source, trial.block_size, trial.name))


# --- what is run ---


def run_trials(
    left: Sequence[Trial], examples: int, device: torch.device, budget: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, result) of each, until the budget would not last for another as long as the longest so far."""
    begin, longest, rows, rows_of = time.monotonic(), 0.0, [], None
    for trial in left:
        started = time.monotonic()
        if started - begin + longest > budget:
            return
        try:
            config = config_of(trial.shape)
            if rows_of != (trial.recipe.model.source, trial.block_size):
                rows, pace = rolled_out(config, trial.block_size, examples, device)
                rows_of = (trial.recipe.model.source, trial.block_size)
                print(f"answers of {trial.shape} in blocks of {trial.block_size}: {pace:,.0f} tokens/s", flush=True)
            result = trained(trial, config, rows, examples, device)
        except torch.OutOfMemoryError as error:
            result = {"failed": str(error).splitlines()[0]}
        longest = max(longest, time.monotonic() - started)
        print(f"{trial.name}: {json.dumps(result)}", flush=True)
        yield trial.name, result


def config_of(shape: str) -> BlockDiffusionConfig:
    """Of the released model of a shape, or of the tiny one."""
    return shape_config(shape) if shape == "tiny" else released_config(shape)


def rolled_out(
    config: BlockDiffusionConfig, block_size: int, count: int, device: torch.device
) -> tuple[list[TrainingRow], float]:
    """Rows of full-step answers as the recipes' heads ask for them, and answer tokens a second."""
    free_memory(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    engine = Engine(build_model(config, device, dtype))
    rng, shortest, longest = np.random.default_rng(block_size), *LENGTHS["real"].prompt
    prompts = [random_ids(config, int(length), rng).tolist() for length in spread(shortest, longest, count, rng)]
    asked = [
        Decoding(block_size=block_size, steps_per_block=block_size, temperature=0.1, max_new_tokens=int(length))
        for length in spread(SHORTEST_ANSWER, LONGEST_ANSWER, count, rng)
    ]
    begin = time.perf_counter()
    answers = engine.generate(prompts, asked)
    seconds = time.perf_counter() - begin
    rows = [
        TrainingRow(str(index), np.asarray(each.prompt_ids), np.asarray(each.token_ids), np.asarray(each.reveal_steps))
        for index, each in enumerate(answers)
    ]
    return rows, sum(len(row.response_ids) for row in rows) / seconds


def spread(low: int, high: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [count]: evenly from `low` to `high`, in a random order."""
    return rng.permutation(np.linspace(low, high, count).round().astype(np.int64))


def trained(
    trial: Trial, config: BlockDiffusionConfig, rows: list[TrainingRow], examples: int, device: torch.device
) -> dict[str, Any]:
    """Two optimizer steps of a recipe, and what was predicted of them."""
    optim = trial.recipe.optim.model_copy(update={"steps": 2, "examples_per_step": examples})
    recipe = trial.recipe.model_copy(update={"optim": optim, "device": device.type})
    predicted = prediction(recipe, trial.shape, config, rows, device)
    free_memory(device)
    accelerator, recipe = prepare_device(recipe)

    def load(dtype: torch.dtype) -> BlockDiffusionModel:
        return build_model(config, device, dtype)

    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    learner = Learner(make_student(load, recipe, device), objective, recipe, accelerator)
    steps = StepDataset(
        rows,
        corruption=recipe.corruption,
        objective=objective,
        batch=recipe.batch,
        num_steps=2,
        examples_per_step=examples,
        model=config,
        seed=recipe.seed,
        share=Share(),
        tiled=learner.computing.attention == "flex",
    )
    seconds, losses = [], []
    for number in (1, 2):
        batches = steps[number - 1]
        wait_for(device)
        begin = time.perf_counter()
        losses.append(float(learner.step(batches, number)["loss"]))
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    assert all(map(math.isfinite, losses)), f"{trial.name}: losses {losses}"
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "peak_gib": peak_memory_gib(device),
        "layers_computed_again": learner.checkpointed_layers,
        "batches": len(batches),
        "tokens": sum(batch.num_tokens for batch in batches),
        "losses": losses,
        "predicted": predicted,
    }


def prediction(
    recipe: Recipe, shape: str, config: BlockDiffusionConfig, rows: Sequence[TrainingRow], device: torch.device
) -> dict[str, Any] | None:
    """The doctor's, for these rows on this GPU; None where the device's facts are not known."""
    gpu = gpu_called(device_name(device))
    if gpu is None:
        return None
    model = weightless(config)
    subject = Subject(shape, shape, config, None, model.num_parameters(), active_parameters(model))
    found: Training = plan_training(recipe, subject, rows, Cluster(gpu))
    return {
        "seconds": None if found.no_seconds else found.time.seconds,
        "peak_gib": found.memory.peak / GIB,
        "layers_computed_again": found.memory.checkpointed,
    }


# --- what is written and shown ---


def earlier_results(file: Path, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a file that was made with the same shape, examples and device; ends the program where one differs."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    others = {name: content.get(name) for name, value in facts.items() if content.get(name) != value}
    if others:
        sys.exit(f"{file}: holds results of {others}; choose another --out")
    return dict(content["recipes"])


def write_down(file: Path, facts: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """All that is known so far."""
    command = f"python bench/recipes.py --shape {facts['shape']} --examples {facts['examples_per_step']}"
    content = {**facts, "versions": versions(), "command": command, "note": NOTE, "recipes": results}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=1) + "\n")


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The short table: measured, and in brackets predicted."""
    lines = [f"{'recipe':<28}{'first step':>12}{'s/step':>18}{'peak GiB':>18}{'computed again':>18}"]
    for name, result in sorted(results.items()):
        if "failed" in result:
            lines.append(f"{name:<28}FAILED: {result['failed']}")
            continue
        beside = result["predicted"] or {}
        cells = [
            f"{shown(result[key], form)} ({shown(beside.get(key), form)})"
            for key, form in (("seconds", ".2f"), ("peak_gib", ".1f"), ("layers_computed_again", "d"))
        ]
        lines.append(f"{name:<28}{result['first_seconds']:>10.1f} s" + "".join(f"{cell:>18}" for cell in cells))
    return lines


if __name__ == "__main__":
    main()

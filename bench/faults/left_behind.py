"""What two runs of a command left behind, compared in all that no clock has a say in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from t3d.study.rows import read_rows
from t3d.trajectories import read

TIMES = frozenset({"seconds", "tokens_per_second", "examples_per_second", "mfu", "memory_gib"})
CLOCKS = TIMES | {"started", "command", "latency_median", "latency_p95", "answers", "checksum"}
ROUNDED = frozenset({"surprisal", "nats_per_token"})
"""Sums of log-probabilities: what is decoded after a resume is batched otherwise, and rounded otherwise in the end."""
MODELS = ("model.safetensors", "reference.safetensors")


def differences_of_rollout(expected: Path, folder: Path) -> list[str]:
    """Rows that are missing, twice or different."""
    rows, right = list(read(folder)), list(read(expected))
    return [] if rows == right else [f"{folder.name}: other rows ({len(rows)} of {len(right)})"]


def differences_of_evaluation(expected: Path, folder: Path) -> list[str]:
    """Answers and results."""
    answers = _differences(_lines(expected / "answers.jsonl"), _lines(folder / "answers.jsonl"), "answers.jsonl")
    results = (_timeless(json.loads((each / "result.json").read_text())) for each in (expected, folder))
    left = ["journal.jsonl is still there"] if (folder / "journal.jsonl").exists() else []
    return answers + _differences(*results, "result.json") + left


def differences_of_training(expected: Path, folder: Path) -> list[str]:
    """Weights and moments bit by bit, metrics, and in a run of rounds the rows of each."""
    wrong = []
    for file in sorted(expected.rglob("*")):
        own = folder / file.relative_to(expected)
        name = str(file.relative_to(expected))
        if file.name in (*MODELS, "optimizer.pt", "moments.pt"):
            wrong += _compared(file, own, name, _tensors)
        elif file.name == "metrics.jsonl":
            wrong += _compared(file, own, name, _lines)
            wrong += [f"{name}: {each} twice" for each in _twice(own)]
        elif file.name == ".manifest.json":
            wrong += _compared(file.parent, own.parent, name, lambda rows: list(read(rows)))
    return wrong


def differences_of_study(expected: Path, folder: Path) -> list[str]:
    """The rows, less clocks; what a cell at equal time learned hangs on them."""
    right, rows = ([_row(each.model_dump()) for each in read_rows(out).rows] for out in (expected, folder))
    return _differences(right, rows, "rows.json")


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    recipe, training = fields.pop("recipe") or {}, fields.pop("training") or {}
    recipe = {key: value for key, value in recipe.items() if key not in ("batch", "data", "out")}
    curve = [[point["step"], point["accuracy"]] for point in training.get("curve", ())]
    settings = json.loads(json.dumps(fields, default=str))
    return {**_timeless(settings), "recipe": recipe, "steps": training.get("steps"), "curve": curve}


def _compared(expected: Path, own: Path, name: str, read_all: Callable[[Path], Any]) -> list[str]:
    if not own.exists():
        return [f"{name} is missing"]
    return _differences(read_all(expected), read_all(own), name)


def _differences(right: Any, own: Any, name: str) -> list[str]:
    where = _first_difference(right, own)
    return [] if where is None else [f"{name} differs{where}"]


def _first_difference(right: Any, own: Any) -> str | None:
    """Where two values of JSON part, such as `[3].surprisal: 1.5, not 2.5`; None if nowhere."""
    if isinstance(right, dict) and isinstance(own, dict) and right.keys() == own.keys():
        parts = ((f".{key}", right[key], own[key]) for key in right if not (key in ROUNDED and _close(right, own, key)))
    elif isinstance(right, list) and isinstance(own, list) and len(right) == len(own):
        parts = ((f"[{place}]", *pair) for place, pair in enumerate(zip(right, own, strict=True)))
    else:
        return None if right == own else f": {str(own)[:60]}, not {str(right)[:60]}"
    found = ((at, _first_difference(one, two)) for at, one, two in parts)
    return next((f"{at}{where}" for at, where in found if where is not None), None)


def _close(right: dict[str, Any], own: dict[str, Any], key: str) -> bool:
    return right[key] is not None and own[key] is not None and math.isclose(right[key], own[key], rel_tol=1e-6)


def _tensors(file: Path) -> Any:
    """All values of a file of tensors, as bytes."""
    stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return _bytes(stored)


def _bytes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bytes(each) for key, each in value.items()}
    return [_bytes(each) for each in value] if isinstance(value, list | tuple) else value


def _lines(file: Path) -> list[dict[str, Any]]:
    return [_timeless(json.loads(line)) for line in file.read_text().splitlines()]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in CLOCKS}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _twice(metrics: Path) -> list[str]:
    """Steps that have two lines of the same kind."""
    seen: set[tuple[int, bool]] = set()
    found = []
    for line in _lines(metrics):
        key = (line["step"], "loss" in line)
        found += [f"step {line['step']}"] if key in seen else []
        seen.add(key)
    return found

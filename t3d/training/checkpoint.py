"""What a run needs to go on exactly where it stopped, written so that a kill never leaves a half-written one.

A checkpoint is a folder `step-000120` that appears by atomic rename: the model's weights, optimizer, reference, and the
step. Noise and data order are functions of the step, so no random state is stored.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from t3d.errors import RequestError, WorkError
from t3d.training.learner import Learner, LearnerState

PREFIX = "step-"


class Checkpoints:
    """The checkpoint folder of one run; keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def newest(self) -> Path | None:
        """The last complete checkpoint, or None."""
        found = sorted(path for path in self._folder.glob(PREFIX + "*") if path.suffix != ".partial")
        return found[-1] if found else None

    def save(self, step: int, state: LearnerState) -> None:
        """Write the state after optimizer step `step` (1-based).

        Raises:
            WorkError: the disk refuses; earlier checkpoints stay.
        """
        final = self._folder / f"{PREFIX}{step:06d}"
        partial = final.with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_plain(state.weights), partial / "model.safetensors")
            torch.save(state.optimizer, partial / "optimizer.pt")
            if state.reference:
                save_file(_plain(state.reference), partial / "reference.safetensors")
            (partial / "state.json").write_text(json.dumps({"step": step}))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
            shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
            raise WorkError(
                f"checkpoint {final}: {reason}; earlier checkpoints are intact, --resume goes on"
            ) from error
        for old in sorted(self._folder.glob(PREFIX + "*"))[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, path: Path, learner: Learner) -> int:
        """Restore everything in place; returns the step after which it was saved.

        Raises:
            RequestError: torn, or of another model.
        """
        try:
            step = int(json.loads((path / "state.json").read_text())["step"])
            reference = path / "reference.safetensors"
            state = LearnerState(
                weights=load_file(path / "model.safetensors"),
                reference=load_file(reference) if reference.exists() else {},
                optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
            )
            learner.load(state)
        except Exception as error:  # a torn file surfaces as whatever its reader raises
            reason = " ".join(str(error).split())[:160]
            raise RequestError(
                f"checkpoint {path}: cannot be used: {reason}; remove it to go on from an earlier one"
            ) from error
        return step


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def same_run(file: Path, recipe: dict[str, Any]) -> str | None:
    """The first key (dotted) in which the recipe stored in `file` differs from `recipe`; None if they agree."""
    return _first_difference(json.loads(file.read_text()), recipe)


def _first_difference(stored: Any, asked: Any, at: str = "") -> str | None:
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted({*stored, *asked}):
            difference = _first_difference(stored.get(key), asked.get(key), f"{at}.{key}".lstrip("."))
            if difference is not None:
                return difference
        return None
    return None if stored == asked else at

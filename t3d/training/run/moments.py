"""AdamW's moments that one run leaves for the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from t3d.errors import RequestError, WorkError
from t3d.files import settle
from t3d.training.optimizers import load_moments_into
from t3d.training.parallel.tensors import whole
from t3d.training.run.folder import MOMENTS_FILE, require_as_left


def save_moments(optimizer: Optimizer, folder: Path, writes: bool = True) -> None:
    """Write an optimizer's state, less its settings, into a run folder; the file appears whole or not at all.

    Args:
        optimizer: of this process; where its moments are sharded, all processes must ask.
        folder: of the run.
        writes: whether this process is the one that writes.

    Raises:
        WorkError: the disk refuses.
    """
    file = folder / MOMENTS_FILE
    partial = file.with_name(f".{file.name}.partial")
    state = _gathered(optimizer.state_dict()["state"], writes)
    if not writes:
        return
    try:
        torch.save({**_facts(optimizer), "state": state}, partial)
        settle(partial)
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:  # torch wraps what the disk says
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise WorkError(f"{file}: {reason}; --resume goes on from the newest checkpoint") from error


def load_moments(optimizer: Optimizer, folder: Path) -> None:
    """Let an optimizer go on from what `save_moments` wrote; its own learning rate and other settings stay.

    Raises:
        RequestError: nothing is there, or it is damaged, of another kind of optimizer or of weights of other shapes.
    """
    file = folder / MOMENTS_FILE
    try:
        require_as_left(file)
        stored = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise RequestError(
            f"optim.moments_from {folder}: has no {MOMENTS_FILE}; run it with optim.keep_moments"
        ) from None
    except RequestError:
        raise
    except Exception as error:  # a torn file surfaces as whatever its reader raises
        raise RequestError(f"optim.moments_from {folder}: its {MOMENTS_FILE} cannot be read; leave it out") from error
    for name, own in _facts(optimizer).items():
        if stored[name] != own:
            raise RequestError(f"optim.moments_from {folder}: was trained with another {name}; leave it out")
    load_moments_into(optimizer, stored["state"])


def _gathered(state: Mapping[int, Mapping[str, Any]], keeps: bool) -> dict[int, dict[str, Any]]:
    """With sharded moments made whole one after another, in the host's memory of the process that keeps them."""

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        gathered = whole(value)
        return gathered.cpu() if keeps else None

    return {index: {key: gather(value) for key, value in moments.items()} for index, moments in state.items()}


def _facts(optimizer: Optimizer) -> dict[str, Any]:
    """What moments fit to: the kind of optimizer, and the shapes of its weights in their order."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {"optimizer": type(optimizer).__name__, "shapes of weights": [list(weight.shape) for weight in weights]}

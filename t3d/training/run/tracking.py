"""Trackers beside metrics.jsonl: TensorBoard, and Weights & Biases and Trackio through accelerate's."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import TrackioTracker, WandBTracker

from t3d.config import TrackingConfig
from t3d.errors import RequestError
from t3d.files import write_whole
from t3d.training.run.event_file import EventFile

logger = logging.getLogger(__name__)

WANDB_FILE = "wandb.json"


class Tracker(Protocol):
    """What `Trackers` asks of each; any of it may raise."""

    def start(self) -> None:
        """Begin a record."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Add a step's metrics to it."""

    def finish(self) -> None:
        """End it."""


def check_trackers(tracking: TrackingConfig) -> None:
    """Whether each package that the recipe names is there; no other is imported.

    Raises:
        RequestError: one is not, or does not import.
    """
    for name in tracking.to:
        try:
            import_module(name)
        except ImportError as error:
            raise RequestError(
                f"tracking.to {name}: cannot be imported ({error}); pip install {name}, or leave it out"
            ) from error


class Trackers:
    """The open trackers of one run. None of them is worth the run: one that fails is left out with a warning.

    Args:
        tracking: which ones, and their project.
        folder: of the run; its name is the run's, unless `tracking` has one.
        config: what they show as the run's settings.
        first_step: finished steps of an earlier part of the same run, whose records go on; 0 begins new ones.
    """

    def __init__(self, tracking: TrackingConfig, folder: Path, config: dict[str, Any], first_step: int) -> None:
        self._open: dict[str, Tracker] = {}
        for name in tracking.to:
            with self._left_out_if_it_fails(name):
                tracker = _tracker(name, tracking, folder, config, first_step)
                tracker.start()
                self._open[name] = tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on the metrics of optimizer step `step` (1-based; 0 is before the first)."""
        for name, tracker in list(self._open.items()):
            with self._left_out_if_it_fails(name):
                tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        """Let them send and write the rest."""
        for name, tracker in list(self._open.items()):
            with self._left_out_if_it_fails(name):
                tracker.finish()
        self._open.clear()

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            logger.warning("tracking.to %s: its records are incomplete: %s (metrics.jsonl is not)", name, reason)


def _tracker(name: str, tracking: TrackingConfig, folder: Path, config: dict[str, Any], first_step: int) -> Tracker:
    if name == "tensorboard":
        # What a killed part of the run wrote beyond its last checkpoint is hidden.
        return EventFile(folder / "tensorboard", hides_from=first_step + 1 if first_step else 0)
    run_name = tracking.name or folder.resolve().name
    if name == "wandb":
        return WandBTracker(
            tracking.project, name=run_name, config=config, dir=str(folder), id=_wandb_id(folder), resume="allow"
        )
    return TrackioTracker(tracking.project, name=run_name, config=config, resume="allow" if first_step else "never")


def _wandb_id(folder: Path) -> str:
    """The id that every part of one run shares, kept in the run folder."""
    file = folder / WANDB_FILE
    if not file.exists():
        write_whole(file, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    return json.loads(file.read_text())["id"]

"""metrics.jsonl: a line of JSON a step, which a resumed run goes on with where its checkpoint was written."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from t3d.errors import RequestError, WorkError
from t3d.files import write_whole
from t3d.training.run.tracking import Trackers

logger = logging.getLogger(__name__)

Logged = dict[str, Any]
"""How much of metrics.jsonl was written: its `size` in bytes, and their `sha256`."""


class MetricsLog:
    """Metrics of optimizer steps: a line of JSON each, passed on to the trackers.

    Args:
        file: that they are appended to; lines of steps after `first_step` are dropped, all of them if that is 0.
        first_step: finished steps.
        trackers: closed with this log.
        logged: how much of the file those steps wrote, where that is known.
    """

    def __init__(self, file: Path, first_step: int, trackers: Trackers, logged: Logged | None = None) -> None:
        kept = _kept_lines(file, first_step) if logged is None else file.read_bytes()[: logged["size"]]
        write_whole(file, kept)
        self._file, self._trackers = file, trackers
        self._size, self._digest = len(kept), hashlib.sha256(kept)

    @property
    def logged(self) -> Logged:
        """What the file holds now, for a checkpoint."""
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append metrics of optimizer step `step` (1-based; 0 is before the first).

        Raises:
            WorkError: the disk refuses.
        """
        line = json.dumps({"step": step, **metrics}).encode() + b"\n"
        try:
            with self._file.open("ab") as file:  # not held open: closing it would fail a second time
                file.write(line)
        except OSError as error:
            raise WorkError(
                f"{self._file}: {error.strerror or error}; make room, then --resume goes on from the newest checkpoint"
            ) from error
        self._size += len(line)
        self._digest.update(line)
        self._trackers.log(step, metrics)

    def close(self) -> None:
        """Let the trackers end; the file is whole after every line."""
        self._trackers.close()


class NoMetricsLog:
    """For the processes beside the main one."""

    logged = None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Leave it to the main process."""

    def close(self) -> None:
        """Nothing is open."""


def check_metrics(file: Path, logged: Logged | None) -> Logged | None:
    """Refuse to go on from a checkpoint after metrics that are not those that were written before it.

    Args:
        file: of the metrics.
        logged: what the checkpoint says of them; None in one of an earlier version.

    Returns:
        `logged`, or None if the file is gone.

    Raises:
        RequestError: they are damaged.
    """
    if logged is None:
        return None
    try:
        kept = file.read_bytes()[: logged["size"]]
    except FileNotFoundError:
        logger.warning("%s: is gone; it begins anew", file)
        return None
    if hashlib.sha256(kept).hexdigest() != logged["sha256"]:
        raise RequestError(f"{file}: damaged (its checksum differs); restore it, or remove it to go on without")
    return logged


def complete_lines(file: Path) -> list[str]:
    """The complete lines of a file that a kill may have cut short."""
    if not file.exists():
        return []
    lines = file.read_text(errors="backslashreplace").split("\n")[:-1]
    return [line + "\n" for line in lines]


def _kept_lines(file: Path, first_step: int) -> bytes:
    """Lines of steps up to this one.

    Raises:
        RequestError: the file is damaged.
    """
    try:
        kept = [line for line in complete_lines(file) if first_step and json.loads(line)["step"] <= first_step]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{file}: damaged; restore it, or remove it to go on without") from error
    return "".join(kept).encode()

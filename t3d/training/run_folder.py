"""The folder of one run: recipe and versions, metrics as they come, and a picture of them in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from t3d.config import Recipe
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole
from t3d.training.checkpoint import same_run
from t3d.versions import versions

logger = logging.getLogger(__name__)

RECIPE_FILE, VERSIONS_FILE, METRICS_FILE = "recipe.json", "versions.json", "metrics.jsonl"


class RunFolder:
    """`recipe.out` for a new run or, with `resume`, for the rest of the same one; nothing is written before `open`.

    Raises:
        RequestError: the folder holds something else, another recipe's run, or an unfinished run without `resume`.
    """

    def __init__(self, recipe: Recipe, resume: bool) -> None:
        self.path = Path(recipe.out)
        self._fields = recipe.model_dump(mode="json", exclude={"device", "out"})
        self._refuse_foreign(self._fields, resume)

    def open(self) -> None:
        """Write down what is run with what; one process does this, once all of them have looked.

        Raises:
            WorkError: the disk refuses.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / RECIPE_FILE, json.dumps(self._fields, indent=2) + "\n")
            write_whole(self.path / VERSIONS_FILE, json.dumps(versions(), indent=2) + "\n")
        except OSError as error:
            raise WorkError(f"out {self.path}: {error.strerror or error}") from error

    @property
    def model(self) -> Path:
        """Where the finished student goes."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    def open_metrics(self, first_step: int, writes: bool = True) -> MetricsLog | NoMetricsLog:
        """A log that goes on after `first_step` finished steps; later lines of a killed run are dropped."""
        return MetricsLog(self.path, first_step) if writes else NoMetricsLog()

    def _refuse_foreign(self, fields: dict[str, Any], resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"out {self.path}: is a file; name a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / RECIPE_FILE).exists():
            raise RequestError(f"out {self.path}: holds something else; choose an empty or new folder")
        try:
            difference = same_run(self.path / RECIPE_FILE, fields)
        except (OSError, ValueError) as error:  # killed while it was written
            raise RequestError(f"out {self.path}: its {RECIPE_FILE} cannot be read; choose another out") from error
        if difference is not None:
            raise RequestError(f"out {self.path}: holds a run with another {difference}; choose another out")
        if not resume:
            raise RequestError(f"out {self.path}: holds this run already; add --resume, or choose another out")


class MetricsLog:
    """Metrics of optimizer steps: a line of JSON each, and TensorBoard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        file = folder / METRICS_FILE
        kept = [line for line in _lines(file) if json.loads(line)["step"] <= first_step]
        write_whole(file, "".join(kept))
        self._file = file.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of optimizer step `step` (1-based)."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        with self._board_may_fail():
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        with self._board_may_fail():
            self._board.close()

    @contextlib.contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """The picture is worth no run, and its error must not hide the one that stopped the run."""
        try:
            yield
        except OSError as error:
            logger.warning("TensorBoard logs are incomplete: %s (metrics.jsonl is not)", error.strerror or error)


class NoMetricsLog:
    """For the processes beside the main one."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Leave it to the main process."""

    def close(self) -> None:
        """Nothing is open."""


def _lines(file: Path) -> list[str]:
    """The complete lines of a file that a kill may have cut short."""
    if not file.exists():
        return []
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]

"""The folder of one run: what was run with what, metrics as they come, and how it ended."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import t3d
from t3d.checksums import sealed, sha256_of, unsealed
from t3d.config import Recipe, make_recipe
from t3d.credentials import without_secrets
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole
from t3d.training.run.metrics import Logged, MetricsLog, NoMetricsLog, complete_lines
from t3d.training.run.tracking import Trackers
from t3d.versions import versions

RECIPE_FILE, RECIPE_YAML_FILE, METRICS_FILE = "recipe.json", "recipe.yaml", "metrics.jsonl"
STARTS_FILE, OUTCOME_FILE, MOMENTS_FILE = "starts.jsonl", "outcome.json", "moments.pt"

MAY_DIFFER = frozenset(
    ("batch", "checkpoint", "compute", "device", "distributed", "evaluation.memory_gib", "log_every", "out", "tracking")
) | {"optim.on_nonfinite", "optim.max_skipped"}
"""Keys and groups that a resumed run may change: they decide about speed, memory, rounding and records only, and about
what becomes of a step that cannot be made."""


class RunFolder:
    """`recipe.out` for a new run or, with `resume`, for the rest of the same one; nothing is written before `open`.

    Raises:
        RequestError: the folder holds something else, another recipe's run, or an unfinished run without `resume`.
    """

    def __init__(self, recipe: Recipe, resume: bool) -> None:
        self.path, self._recipe = Path(recipe.out), recipe
        self._refuse_foreign(resume)

    def open(self, **facts: Any) -> None:
        """Write down what is run with what; one process does this, once all of them have looked.

        Args:
            facts: what else belongs into this start's line of `starts.jsonl`, such as the device.

        Raises:
            WorkError: the disk refuses.
        """
        fields = self._recipe.model_dump(mode="json")
        compared = {key: value for key, value in fields.items() if key not in ("device", "out")}
        started = complete_lines(self.path / STARTS_FILE)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / RECIPE_FILE, json.dumps(compared, indent=2) + "\n")
            write_whole(self.path / RECIPE_YAML_FILE, yaml.safe_dump(_given(fields), sort_keys=False))
            write_whole(self.path / STARTS_FILE, "".join([*started, json.dumps({**_this_start(), **facts}) + "\n"]))
            (self.path / OUTCOME_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise WorkError(f"out {self.path}: {error.strerror or error}") from error

    @property
    def model(self) -> Path:
        """Where the finished student goes."""
        return self.path / "model"

    @property
    def best(self) -> Path:
        """Where the student goes that evaluation found best so far."""
        return self.path / "best"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    def open_metrics(
        self, first_step: int, writes: bool = True, logged: Logged | None = None
    ) -> MetricsLog | NoMetricsLog:
        """A log that goes on after `first_step` finished steps, when as much was `logged` as their checkpoint says.

        Later lines of a killed run are dropped.
        """
        if not writes:
            return NoMetricsLog()
        trackers = Trackers(self._recipe.tracking, self.path, self._recipe.model_dump(mode="json"), first_step)
        return MetricsLog(self.path / METRICS_FILE, first_step, trackers, logged)

    def close(self, outcome: dict[str, Any]) -> None:
        """Write down how the run ended (`outcome.json`).

        Raises:
            WorkError: the disk refuses.
        """
        try:
            there = [name for name in (METRICS_FILE, MOMENTS_FILE) if (self.path / name).exists()]
            beside = {"sha256": {name: sha256_of(self.path / name) for name in there}}
            write_whole(self.path / OUTCOME_FILE, json.dumps(sealed({**outcome, **beside}), indent=2) + "\n")
        except OSError as error:
            raise WorkError(f"out {self.path}: {error.strerror or error}") from error

    def _refuse_foreign(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"out {self.path}: is a file; name a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / RECIPE_FILE).exists():
            raise RequestError(
                f"out {self.path}: holds something else (no {RECIPE_FILE}); choose an empty or new folder"
            )
        try:
            difference = other_run(self.path / RECIPE_FILE, self._recipe)
        except (OSError, ValueError, TypeError) as error:  # damaged, or of another version of this package
            raise RequestError(f"out {self.path}: its {RECIPE_FILE} cannot be read; choose another out") from error
        if difference is not None:
            raise RequestError(f"out {self.path}: holds a run with another {difference}; choose another out")
        if not resume:
            raise RequestError(f"out {self.path}: holds this run already; add --resume, or choose another out")


def other_run(file: Path, recipe: Recipe) -> str | None:
    """The first key (dotted) by which the run stored in `file` is another than `recipe`'s; None if it is the same.

    Keys that the stored recipe lacks had their defaults. Those in `MAY_DIFFER` do not make another run.

    Raises:
        OSError, ValueError: the file cannot be read as a recipe.
    """
    stored = make_recipe({**json.loads(file.read_text()), "out": recipe.out})
    return _first_difference(stored.model_dump(mode="json"), recipe.model_dump(mode="json"))


def steps_of_finished(out: Path) -> int | None:
    """Optimizer steps of the finished run in this folder, whose student is in `model`; None if none is finished."""
    return int(read_outcome(out)["step"]) if (out / OUTCOME_FILE).exists() else None


def read_outcome(out: Path) -> dict[str, Any]:
    """How the finished run in this folder ended.

    Raises:
        RequestError: the file is not there, or damaged.
    """
    file = out / OUTCOME_FILE
    try:
        return unsealed(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read; remove it, then --resume ends the run anew") from error


def require_as_left(file: Path) -> None:
    """Refuse a file of a run that is not as the run left it; that of one which is not finished is taken as it is.

    Raises:
        RequestError: it is damaged, or the run's outcome is.
        OSError: it cannot be read.
    """
    if not (file.parent / OUTCOME_FILE).exists():
        return
    expected = read_outcome(file.parent).get("sha256", {}).get(file.name)
    if expected is not None and sha256_of(file) != expected:
        raise RequestError(f"{file}: damaged (its checksum differs); restore it, or train into another folder")


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of the finished run in this folder.

    Raises:
        RequestError: they are not those that the run wrote.
    """
    file = out / METRICS_FILE
    try:
        require_as_left(file)
        return [json.loads(line) for line in file.read_text().splitlines()]
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror or error}; restore it, or train into another folder") from error


def describe_outcome(out: Path) -> str:
    """One line about a finished run: where the model is, and the best one if the run looked for it."""
    line = f"{out / 'model'}: the trained model"
    if not (out / OUTCOME_FILE).exists():
        return line
    outcome = read_outcome(out)
    if outcome["stopped_early"]:
        line += f", stopped early after {outcome['step']:,} of {outcome['steps']:,} steps"
    best = outcome["best"]
    if best is not None:
        line += f"; {out / 'best'}: the best one, {100 * best['accuracy']:.1f}% after step {best['step']:,}"
    return line


def _first_difference(stored: Any, asked: Any, at: str = "") -> str | None:
    if at in MAY_DIFFER:
        return None
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted({*stored, *asked}):
            difference = _first_difference(stored.get(key), asked.get(key), f"{at}.{key}".lstrip("."))
            if difference is not None:
                return difference
        return None
    return None if stored == asked else at


def _this_start() -> dict[str, Any]:
    """When, where and by what command this process runs which software."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_secrets(shlex.join(sys.argv)),
        "folder": os.getcwd(),
        "versions": versions(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The git commit of this package's source, if it runs from a checkout."""
    root = Path(t3d.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def _given(fields: Any) -> Any:
    """Without keys that were left open: a recipe as somebody would write it."""
    if not isinstance(fields, dict):
        return fields
    return {key: _given(value) for key, value in fields.items() if value is not None}

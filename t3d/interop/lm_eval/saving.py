"""Whether the harness wrote what `--output_path` asks for: by itself it logs a failure and ends as if all were well."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from t3d.errors import RequestError


class CheckedTracker(EvaluationTracker):
    """The harness' own, and a list of what it could not write.

    Args:
        lost: gets a line for each file that is missing or not whole.
        arguments: the harness' own.

    Raises:
        RequestError: nothing can be written to `output_path`; it is said before anything is decoded.
    """

    def __init__(self, lost: list[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._lost = lost
        if self.output_path:
            _require_writable(Path(self.output_path))

    def save_results_aggregated(self, results: dict[str, Any], samples: dict[str, Any] | None = None) -> None:
        """Write the results' file."""
        super().save_results_aggregated(results, samples)
        if self.output_path:
            path = Path(self.output_path)
            self._check("results", f"{path.stem if path.suffix == '.json' else 'results'}_{self._date}.json")

    def save_results_samples(self, task_name: str, samples: Any) -> None:
        """Write a task's answers."""
        super().save_results_samples(task_name, samples)
        if self.output_path:
            self._check(f"samples of {task_name}", f"samples_{task_name}_{self._date}.jsonl", len(samples))

    @property
    def _date(self) -> str:
        """In the names of the files; "" where the harness failed before it had one."""
        return getattr(self, "date_id", "")

    def _check(self, what: str, name: str, num_lines: int | None = None) -> None:
        """Note a file that is not there, or that is not whole: of so many lines, or one JSON value."""
        path = Path(self.output_path)
        own = path.parent if path.suffix == ".json" else path / str(self.general_config_tracker.model_name_sanitized)
        try:
            text = (own / name).read_text(encoding="utf-8")
            is_whole = bool(json.loads(text)) if num_lines is None else text.count("\n") == num_lines
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            self._lost.append(f"{what} ({own / name})")


def _require_writable(output_path: Path) -> None:
    folder = output_path.parent if output_path.suffix == ".json" else output_path
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"--output_path {output_path}: nothing can be written in {there}; choose another folder")

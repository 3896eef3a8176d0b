"""The JSON file of a benchmark: what ran where, and its rows, written down whole after each."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from t3d.errors import WorkError
from t3d.files import write_whole
from t3d.models import device_name
from t3d.versions import versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


@dataclass(slots=True)
class ResultFile(Generic[Row]):
    """A JSON file that holds what has been measured so far; the file of an earlier run stays until the first row.

    Attributes:
        file: in a folder that exists.
        command: exact.
        device, dtype: where and in what the model runs; dtype None where there is no model.
        note: how the rows' figures are counted.
        facts: what else holds for all rows.
        rows: so far.
    """

    file: Path
    command: str
    device: torch.device
    dtype: torch.dtype | None
    note: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Write all rows, this one included.

        Raises:
            WorkError: the disk refuses.
        """
        self.rows.append(row)
        try:
            write_whole(self.file, json.dumps(self._content(), indent=1) + "\n")
        except OSError as error:
            raise WorkError(f"--out {self.file}: {error.strerror or error}") from error

    def _content(self) -> dict[str, object]:
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": device_name(self.device),
            **({} if self.dtype is None else {"dtype": str(self.dtype).removeprefix("torch.")}),
            "versions": {**versions(), **_triton_version()},
            "command": self.command,
            "note": self.note,
            **self.facts,
            "rows": [asdict(row) for row in self.rows],
        }


def peak_memory_gib(device: torch.device) -> float | None:
    """Most that torch has reserved since the count was reset; None on the CPU."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


def shown(value: float | None, form: str, unit: str = "") -> str:
    """For a table."""
    return "–" if value is None else f"{value:{form}}{unit}"


def _triton_version() -> dict[str, str]:
    try:
        return {"triton": version("triton")}
    except PackageNotFoundError:
        return {}

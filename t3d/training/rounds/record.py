"""The record of a run of rounds: what is finished of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t3d.checksums import sealed, unsealed
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole

ROUNDS_FILE = "rounds.json"


class RoundsFile:
    """`rounds.json` in `out`: the parts that are finished, by their folders, with their sizes and seconds.

        {"out": "runs/student", "finished": {"round-1/trajectories": {"answers": 10000, "seconds": 101.5, ...}, ...}}

    Seconds are those of the process that finished the part; those of `judged` count its rollouts in. `out` is stored
    because the rounds' own recipes name folders in it.

    Raises:
        RequestError: the file is damaged, or of a run that was begun under another name.
    """

    def __init__(self, out: str) -> None:
        self._out, self._file = out, Path(out) / ROUNDS_FILE
        self._finished: dict[str, dict[str, Any]] = {}
        self.read()

    def __contains__(self, part: str) -> bool:
        """Whether a part is finished."""
        return part in self._finished

    def __getitem__(self, part: str) -> dict[str, Any]:
        """The figures of a finished part."""
        return self._finished[part]

    def read(self) -> None:
        """Look again at what is on disk: another process may have finished something.

        Raises:
            RequestError: as on construction.
        """
        out = self._out
        if not self._file.exists():
            return
        try:
            content = unsealed(self._file.read_bytes())
            begun_as, self._finished = content["out"], content["finished"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"out {out}: its {ROUNDS_FILE} cannot be read; choose another out") from error
        if Path(begun_as) != Path(out):
            raise RequestError(f"out {out}: was begun as out={begun_as}; go on under that name")

    def add(self, part: str, figures: dict[str, Any]) -> None:
        """A part is finished; on disk when this returns.

        Raises:
            WorkError: the disk refuses; the part will be looked at again.
        """
        self._finished[part] = figures
        try:
            record = sealed({"out": self._out, "finished": self._finished})
            write_whole(self._file, json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise WorkError(f"{self._file}: {error.strerror or error}; --resume goes on") from error

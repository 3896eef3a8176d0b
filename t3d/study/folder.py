"""A study's folder.

out/
  study.json                          what is studied
  rows.json                           everything that tables are made from
  rollouts/seed-0/, seed-0.json       shared rollouts, and what they took
  cells/<method>/lr-0.0003/seed-0/    cell.json (its row), run/ (the training), test/ (answers and figures)
  logs/                               what workers printed
  report.md and its pictures
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from t3d.config.study import StudyConfig
from t3d.errors import RequestError, WorkError
from t3d.study.rows import read_record, write_record

STUDY_FILE, LOCK_FILE = "study.json", ".lock"
SHARED = ("out", "teacher", "rollout", "tune", "test")
"""What all cells have in common. The rest may change between parts of a study: cells have recipes of their own."""


@contextlib.contextmanager
def open_folder(study: StudyConfig, resume: bool) -> Iterator[Path]:
    """The study's folder, new or gone on with, for this process alone.

    Raises:
        RequestError: it holds something else, another study, or this one without `resume`; or it is in use.
        WorkError: the disk refuses.
    """
    out = Path(study.out)
    _refuse_foreign(study, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK_FILE).open("w")
    except OSError as error:
        raise WorkError(f"out {out}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(f"out {out}: another process works on this study") from error
        except OSError:  # a file system without locks
            pass
        write_record(study, out / STUDY_FILE)
        yield out


def _refuse_foreign(study: StudyConfig, resume: bool) -> None:
    out = Path(study.out)
    if out.exists() and not out.is_dir():
        raise RequestError(f"out {out}: is a file; name a folder")
    if not out.exists() or all(each.name == LOCK_FILE for each in out.iterdir()):
        return
    file = out / STUDY_FILE
    if not file.exists():
        raise RequestError(f"out {out}: holds something else; choose an empty or new folder")
    if not resume:
        raise RequestError(f"out {out}: holds a study already; add --resume, or choose another out")
    try:
        stored = read_record(StudyConfig, file)
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read; choose another out") from error
    other = [key for key in SHARED if getattr(stored, key) != getattr(study, key)]
    if other:
        raise RequestError(f"out {out}: holds a study with another {other[0]}; choose another out")

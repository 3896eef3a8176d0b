"""Files that appear whole or not at all, also where several processes write into one folder at once."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from t3d.errors import WorkError
from t3d.files import settle, settle_folder

TEMPORARY_PREFIX = ".t3d-tmp-"
ABANDONED_AFTER_SECONDS = 3600.0
"""A temporary file of a process somewhere else, which cannot be asked whether it lives, is then a leftover."""


def _place() -> str:
    """Where the numbers of processes mean something: a machine, and a container on it (they may share its name)."""
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:  # not Linux
        namespace = "0"
    return f"{socket.gethostname()}-{namespace}"


PLACE = _place()


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary path of this process's own to write to; then `target` is that file, safely on disk, or unchanged.

    Raises:
        WorkError: the file could not be written; nothing is left of it.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}@{PLACE}@{target.name}")
    try:
        yield temporary
        settle(temporary)
        os.replace(temporary, target)
        settle_folder(target.parent)
    except OSError as error:
        raise WorkError(f"cannot write {target}: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that are no more were writing when they died; leave the files of living ones alone."""
    for file in folder.glob(TEMPORARY_PREFIX + "*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or in the way: that shows when it is written again
            if _is_abandoned(file):
                file.unlink()


def reason_of(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())


def _is_abandoned(file: Path) -> bool:
    pid, *rest = file.name.removeprefix(TEMPORARY_PREFIX).split("@", 2)
    if len(rest) < 2 or not pid.isdecimal():  # of an earlier version, which had its folder for itself
        return True
    if rest[0] == PLACE and int(pid) != os.getpid():
        return not _is_alive(int(pid))
    return time.time() - file.stat().st_mtime > ABANDONED_AFTER_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True

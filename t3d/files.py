"""Writing a small file whole or not at all, and having the disk keep what was written."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_CANNOT_SETTLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What file systems say that have nothing to do for a folder: some network and user-space ones."""


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file by atomic rename, text as UTF-8; on a full disk the old one stays, and nothing beside it.

    Raises:
        OSError: the disk refuses; says which file.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        settle(partial)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        error.filename, error.filename2 = str(file), None  # a write says none, a rename two
        raise


def settle(path: Path) -> None:
    """Have the disk keep what was written to a file: at a quota, and over a network, it may refuse only then.

    Raises:
        OSError: it does.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle_folder(folder: Path) -> None:
    """Have the disk keep a folder's names, where its file system has something to do for that.

    Raises:
        OSError: the disk refuses.
    """
    try:
        settle(folder)
    except OSError as error:
        if error.errno not in _CANNOT_SETTLE:
            raise

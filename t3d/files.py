"""Writing a small file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file by atomic rename, text as UTF-8; on a full disk the old one stays, and nothing beside it.

    Raises:
        OSError: the disk refuses.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

"""Writing a small file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file by atomic rename; on a full disk the old one stays as it was, and nothing beside it.

    Raises:
        OSError: the disk refuses.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

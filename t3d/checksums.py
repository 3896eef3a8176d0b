"""What is read is what was written: checksums of a folder's files, and of a record of JSON.

A folder that is written inside of `checked` has a `checksums.json`, which names its files. Folders and records of
earlier versions have no checksums, and are read without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t3d.files import settle, write_whole

CHECKSUMS_FILE = "checksums.json"
CHECKSUM = "checksum"
"""The last key of a record."""
_UNFINISHED: dict[str, Any] = {"unfinished": True}
_AT_ONCE = 8
"""Files that are read at the same time."""


class Damaged(ValueError):
    """A record is not the one that was written."""


@contextmanager
def checked(folder: Path) -> Iterator[None]:
    """Inside, a folder's files are written; a reader then finds them as they were, or is told that they are not.

    Until its end, and for good after a kill, the folder counts as unfinished.

    Raises:
        OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CHECKSUMS_FILE
    write_whole(file, json.dumps(_UNFINISHED) + "\n")
    yield
    names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file() and each != file)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda name: settle(folder / name), names))  # else a checksum may be that of what gets lost
    write_whole(file, json.dumps(sealed({"sha256": _checksums(folder, names)}), indent=1) + "\n")


def damage_of_folder(folder: Path, is_read: Callable[[str], bool] = lambda _: True) -> str | None:
    """What is wrong with a folder's files, in a few words that name one; None if nothing is, or no checksums are there.

    Args:
        folder: as `checked` left it.
        is_read: whether a file of this name, seen from the folder, matters.
    """
    file = folder / CHECKSUMS_FILE
    try:
        content = unsealed(file.read_bytes())
        if content == _UNFINISHED:
            return "it was not written to its end"
        expected = {name: sha256 for name, sha256 in content["sha256"].items() if is_read(name)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS_FILE} is damaged"
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        found = _checksums(folder, list(expected))
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    damaged = [name for name in expected if found[name] != expected[name]]
    return f"{damaged[0]} is damaged (its checksum differs)" if damaged else None


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record of JSON with its checksum."""
    return {**fields, CHECKSUM: _checksum(fields)}


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The record of JSON in a text, less its checksum, which may be missing.

    Raises:
        Damaged: it is not the one that was written.
        ValueError: it is no record at all.
    """
    try:
        fields = json.loads(text)
    except RecursionError as error:
        raise ValueError("no record of JSON") from error
    if not isinstance(fields, dict):
        raise ValueError("no record of JSON")
    if CHECKSUM in fields and fields.pop(CHECKSUM) != _checksum(fields):
        raise Damaged("its checksum differs")
    return fields


def sha256_of(file: Path) -> str:
    """A file's checksum in hex digits.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(fields: Mapping[str, Any]) -> str:
    """16 hex digits of what JSON makes of a record, in any order of its keys."""
    stored = json.loads(json.dumps(fields))  # keys become text
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:16]


def _checksums(folder: Path, names: list[str]) -> dict[str, str]:
    """Of files in a folder, by name."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(zip(names, threads.map(lambda name: sha256_of(folder / name), names), strict=True))

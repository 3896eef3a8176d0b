"""What a trajectory folder says of itself: a manifest, which is written once, and a record of each finished shard.

A record's name holds its file's checksum, and it is there before the file is. So whichever of two processes that write
the same shard comes last, and whenever one of them is killed, the file that lies there has its record.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t3d.checksums import sealed, unsealed
from t3d.config import PromptConfig
from t3d.errors import RequestError, WorkError
from t3d.trajectories.appearing import appearing, reason_of
from t3d.trajectories.schema import TrajectoryMeta

MANIFEST = ".manifest.json"
MAX_SHARDS = 1_000_000
_RECORD_NAME = re.compile(r"\.shard-(\d{5,})-[0-9a-f]{16}\.json")


@dataclass(frozen=True, slots=True)
class Shard:
    """The record of a finished shard: its number of rows and its file's sha256."""

    num_rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a trajectory folder is to hold.

    Attributes:
        meta: where its rows come from.
        request_fingerprint: of the work list.
        num_shards: that the work list is cut into.
        shards: finished ones by number, in a folder of an earlier version, which kept no records beside its shards.
    """

    meta: TrajectoryMeta
    request_fingerprint: str
    num_shards: int
    shards: dict[int, Shard] = field(default_factory=dict)

    def first_difference(self, asked: Manifest) -> str | None:
        """Why this folder cannot be continued for `asked`: "temperature 0.1, not 0.7"; None if it can."""
        old, new = (m._facts() for m in (self, asked))
        names = (name for name in new if old[name] != new[name])
        return next((f"{name} {old[name]!r}, not {new[name]!r}" for name in names), None)

    def to_json(self) -> str:
        """The manifest's text; without `shards`, which have records."""
        return json.dumps(sealed({"meta": self.meta.to_dict(), **self._request()}), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest of a text, also an earlier version's; raises `RequestError` if the text is no manifest."""
        try:
            content = unsealed(text)
            shards = {_count(entry.pop("index")): _shard(entry) for entry in content.pop("shards", ())}
            manifest = cls(TrajectoryMeta.from_dict(content.pop("meta")), **content, shards=shards)
            if not 1 <= _count(manifest.num_shards) <= MAX_SHARDS:
                raise ValueError(f"num_shards must be from 1 to {MAX_SHARDS:,}")
            return manifest
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RequestError(f"not a trajectory manifest ({error})") from error

    def _facts(self) -> dict[str, Any]:
        """All that must be the same for a rollout to go on, the parts of the prompts' form one by one."""
        facts = self.meta.to_dict()
        form = facts.pop("prompt") or {}
        parts = {f"prompt.{name}": form.get(name) for name in PromptConfig.model_fields}
        return {**facts, **parts, **self._request()}

    def _request(self) -> dict[str, Any]:
        return {"request_fingerprint": self.request_fingerprint, "num_shards": self.num_shards}


def shard_name(index: int) -> str:
    """The name of a shard's file."""
    return f"shard-{index:05d}.parquet"


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; raises `RequestError` if it has none that can be read."""
    file = folder / MANIFEST
    try:
        return Manifest.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"{folder} has no {MANIFEST}; give a folder that `t3d rollout` wrote, with its hidden file"
        ) from None
    except (OSError, ValueError) as error:  # not there, not UTF-8, or no manifest
        raise RequestError(f"{file} cannot be read: {reason_of(error)}; choose another folder") from error


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest, and records of the shards that an earlier version listed in it.

    Raises:
        WorkError: the disk refuses.
    """
    for index, shard in manifest.shards.items():
        save_record(folder, index, shard)
    _save(folder / MANIFEST, manifest.to_json())


def save_record(folder: Path, index: int, shard: Shard) -> None:
    """Write the record of a shard whose file is about to appear; raises `WorkError` if the disk refuses."""
    _save(_record_file(folder, index, shard.sha256), json.dumps(sealed(asdict(shard))) + "\n")


def remove_records(folder: Path, index: int) -> None:
    """Forget that a shard was finished; raises `WorkError` if the disk refuses."""
    try:
        for file in folder.glob(f".shard-{index:05d}-*.json"):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise WorkError(f"cannot write {folder}: {reason_of(error)}") from error


def finished_shards(folder: Path, manifest: Manifest) -> dict[int, int]:
    """The number of rows of each shard that has a record and a file, by number in order."""
    names = set(os.listdir(folder))
    num_rows = {index: shard.num_rows for index, shard in manifest.shards.items()}
    for name in names:
        if (match := _RECORD_NAME.fullmatch(name)) and (shard := _read_record(folder / name)):
            num_rows[int(match[1])] = shard.num_rows  # of several records the same, as the rows are
    there = (index for index in range(manifest.num_shards) if shard_name(index) in names)
    return {index: num_rows[index] for index in there if index in num_rows}


def is_recorded(folder: Path, manifest: Manifest, index: int, sha256: str) -> bool:
    """Whether a shard's file that has this checksum is what somebody wrote.

    A shard has several records after processes wrote it with other last bits (on GPUs of two kinds, say). Ask with the
    checksum of a file that was read before: its record is older than itself.
    """
    known = (manifest.shards.get(index), _read_record(_record_file(folder, index, sha256)))
    return any(shard is not None and shard.sha256 == sha256 for shard in known)


def _record_file(folder: Path, index: int, sha256: str) -> Path:
    return folder / f".shard-{index:05d}-{sha256[:16]}.json"


def _read_record(file: Path) -> Shard | None:
    """A record; None if it is none, or gone: its shard then counts as missing, and is written again."""
    try:
        return _shard(unsealed(file.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _shard(fields: dict[str, Any]) -> Shard:
    """A record from what JSON holds of it; raises `TypeError` or `ValueError` if that is none."""
    shard = Shard(**fields)
    if not isinstance(shard.sha256, str):
        raise TypeError("sha256 must be text")
    return Shard(_count(shard.num_rows), shard.sha256)


def _count(value: object) -> int:
    """A whole number from 0 that JSON holds; raises `TypeError` or `ValueError` if it is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    if not 0 <= value < 2**63:
        raise ValueError("a number is out of range")
    return value


def _save(file: Path, text: str) -> None:
    with appearing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")

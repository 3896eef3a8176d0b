"""Trajectory folders: parquet shards that appear whole or not at all, and a manifest of the finished ones.

runs/teacher/
  .manifest.json          meta, request fingerprint, number of shards; rows and sha256 of each finished one
  shard-00000.parquet     appears by atomic rename, in any order
  .t3d-tmp-...            being written; removed when the folder is opened again

All that is no shard has a hidden name, which readers of parquet folders (datasets, pyarrow, Spark) pass over.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from t3d.errors import RequestError, WorkError
from t3d.trajectories.schema import Manifest, Shard, TrajectoryMeta, meta_from_schema, rows_to_table, table_to_rows
from t3d.types import Trajectory

logger = logging.getLogger(__name__)

MANIFEST = ".manifest.json"
_TEMPORARY_PREFIX = ".t3d-tmp-"
_ROWS_PER_SHARD = 4096  # of `write`
_ROWS_PER_GROUP = 1024  # what a reader holds in memory at a time
_REDO = "rerun the same `t3d rollout` with --resume to redo it"
_REPLACE = "replace it by an intact copy"


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


class TrajectoryWriter:
    """Writes a folder shard by shard, each one safely; what is finished survives any interruption.

    The caller cuts its work into `num_shards` fixed slices, writes the rows of slice i as shard i in any order, and
    after an interruption opens the folder with `resume=True` and redoes the slices that are not in `finished`.
    One writer at a time may have a folder open.

    Args:
        folder: created if need be.
        meta: where the rows come from.
        request_fingerprint: identifies the work list and all else that the rows depend on.
        num_shards: number of slices of the work list, at least 1.
        resume: continue a folder that the same request began.

    Raises:
        RequestError: the folder holds something else, another rollout, or this one and `resume` is False.
        WorkError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: TrajectoryMeta,
        request_fingerprint: str,
        num_shards: int,
        resume: bool = False,
    ) -> None:
        if num_shards < 1:
            raise ValueError(f"num_shards must be at least 1, not {num_shards}")
        self.folder = Path(folder)
        self._manifest = Manifest(meta, request_fingerprint, num_shards)
        if (self.folder / MANIFEST).exists():
            self._continue(resume)
        else:
            self._begin()

    @property
    def finished(self) -> set[int]:
        """The numbers of the shards that need no more work."""
        return set(self._manifest.shards)

    def write_shard(self, index: int, rows: Iterable[Trajectory]) -> None:
        """Write all rows of shard `index`; when this returns they are on disk and listed in the manifest.

        Raises:
            RequestError: a row means nothing (see `t3d.trajectories.schema.check_table`).
            WorkError: no space is left, the folder is read-only, ...; the other shards stay readable.
        """
        if not 0 <= index < self._manifest.num_shards or index in self._manifest.shards:
            raise ValueError(f"shard {index} is finished, or not in 0 .. {self._manifest.num_shards - 1}")
        file = self.folder / _shard_name(index)
        table = rows_to_table(list(rows), self._manifest.meta, str(file))
        with _appearing(file) as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=_ROWS_PER_GROUP, write_page_checksum=True
            )
            shard = Shard(table.num_rows, _sha256(temporary))
        self._list(self._manifest.shards | {index: shard})

    def _begin(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{self.folder} is a file; choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = sorted(entry.name for entry in self.folder.iterdir())
        except OSError as error:
            raise WorkError(f"cannot write {self.folder}: {_reason(error)}") from error
        if foreign := [name for name in names if not name.startswith(_TEMPORARY_PREFIX)]:
            raise RequestError(f"{self.folder} holds {foreign[0]!r} and is no trajectory folder; choose another --out")
        _remove_leftovers(self.folder)
        _save_manifest(self.folder, self._manifest)

    def _continue(self, resume: bool) -> None:
        found = _load_manifest(self.folder)
        if difference := found.first_difference(self._manifest):
            raise RequestError(f"{self.folder} was rolled out with {difference}; choose another --out")
        if not resume:
            raise RequestError(
                f"{self.folder} holds this rollout already, {len(found.shards)} of {found.num_shards} shards "
                "finished; add --resume to continue it, or choose another --out"
            )
        _remove_leftovers(self.folder)
        intact = {index: shard for index, shard in found.shards.items() if self._is_intact(index, shard)}
        self._manifest = found
        if intact != found.shards:
            self._list(intact)

    def _is_intact(self, index: int, shard: Shard) -> bool:
        damage = _damage(self.folder / _shard_name(index), shard)
        if damage:
            logger.warning("%s; it will be written again", damage)
        return damage is None

    def _list(self, shards: dict[int, Shard]) -> None:
        """Make `shards` the finished ones, on disk first."""
        manifest = replace(self._manifest, shards=shards)
        _save_manifest(self.folder, manifest)
        self._manifest = manifest


def read(path: str | Path, *, allow_partial: bool = False) -> Iterator[Trajectory]:
    """The rows of a folder, shard after shard, or of one parquet file; read as they are asked for.

    Args:
        path: a trajectory folder or a parquet file.
        allow_partial: read the finished shards of an unfinished folder instead of refusing it.

    Raises:
        RequestError: at once if `path` is no trajectory folder or file, or is unfinished; while iterating if a
            shard is missing or damaged or a row means nothing. Names the file and the cure.
    """
    path = _existing(path)
    if path.is_dir():
        return _read_shards(path, _load_finished(path, allow_partial))
    return _read_file(path, _REPLACE)


def read_meta(path: str | Path) -> TrajectoryMeta:
    """Where the rows of a folder or parquet file come from; raises `RequestError` if it does not say."""
    path = _existing(path)
    if path.is_dir():
        return _load_manifest(path).meta
    with _open_parquet(path, _REPLACE) as parquet:
        return meta_from_schema(parquet.schema_arrow, str(path))


def count(path: str | Path, *, allow_partial: bool = False) -> int:
    """The number of rows that `read` with the same arguments yields, without reading them; raises like it."""
    path = _existing(path)
    if path.is_dir():
        return sum(shard.num_rows for shard in _load_finished(path, allow_partial).shards.values())
    with _open_parquet(path, _REPLACE) as parquet:
        return int(parquet.metadata.num_rows)


def write(path: str | Path, rows: Iterable[Trajectory], meta: TrajectoryMeta, resume: bool = False) -> None:
    """Write a complete trajectory folder, or with `resume` the rest of one of the same rows; raises like
    `TrajectoryWriter`.
    """
    rows = list(rows)
    starts = range(0, max(len(rows), 1), _ROWS_PER_SHARD)
    writer = TrajectoryWriter(path, meta, request_fingerprint="", num_shards=len(starts), resume=resume)
    for index, start in enumerate(starts):
        if index not in writer.finished:
            writer.write_shard(index, rows[start : start + _ROWS_PER_SHARD])


def _read_shards(folder: Path, manifest: Manifest) -> Iterator[Trajectory]:
    for index in sorted(manifest.shards):
        file = folder / _shard_name(index)
        if damage := _damage(file, manifest.shards[index]):
            raise RequestError(f"{damage}; {_REDO}")
        yield from _read_file(file, _REDO)


def _read_file(file: Path, cure: str) -> Iterator[Trajectory]:
    first_row = 0
    with _open_parquet(file, cure) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_GROUP):
            yield from table_to_rows(pa.Table.from_batches([batch]), str(file), first_row)
            first_row += batch.num_rows
        if first_row != parquet.metadata.num_rows:  # a damaged page header makes pyarrow skip the page
            raise RequestError(f"{file} is damaged: {first_row} of {parquet.metadata.num_rows} rows are left; {cure}")


@contextlib.contextmanager
def _open_parquet(file: Path, cure: str) -> Iterator[pq.ParquetFile]:
    """An open parquet file; whatever pyarrow cannot read in it becomes a `RequestError` ending in `cure`."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} is no readable parquet file ({_reason(error)}); {cure}") from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise RequestError(f"{path} does not exist; give a trajectory folder or a parquet file")
    return path


def _load_finished(folder: Path, allow_partial: bool) -> Manifest:
    manifest = _load_manifest(folder)
    if manifest.num_missing and not allow_partial:
        raise RequestError(
            f"{folder} is unfinished: {manifest.num_missing} of {manifest.num_shards} shards are missing; "
            "rerun the same `t3d rollout` with --resume"
        )
    return manifest


def _load_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        return Manifest.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"{folder} has no {MANIFEST}; give a folder that `t3d rollout` wrote, with its hidden file"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{file} cannot be read: {_reason(error)}; choose another folder") from error


def _save_manifest(folder: Path, manifest: Manifest) -> None:
    with _appearing(folder / MANIFEST) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")


def _damage(file: Path, shard: Shard) -> str | None:
    """What is wrong with a listed shard's file, or None."""
    try:
        intact = _sha256(file) == shard.sha256
    except OSError as error:
        return f"{file} cannot be read ({_reason(error)})"
    return None if intact else f"{file} is damaged (its checksum differs)"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary path to write to; afterwards `target` is that file, safely on disk, or unchanged.

    Raises:
        WorkError: the file could not be written; nothing is left of it.
    """
    temporary = target.with_name(_TEMPORARY_PREFIX + target.name)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
        _fsync(target.parent)
    except OSError as error:
        raise WorkError(f"cannot write {target}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for file in folder.glob(_TEMPORARY_PREFIX + "*"):
        with contextlib.suppress(OSError):  # what is in the way shows when it is written again
            file.unlink()


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())

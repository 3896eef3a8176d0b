"""Reading trajectory folders and files; whatever is unfinished or damaged is refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from t3d.errors import RequestError
from t3d.trajectories.appearing import reason_of
from t3d.trajectories.manifest import Manifest, finished_shards, load_manifest, shard_name
from t3d.trajectories.schema import TrajectoryMeta, meta_from_schema, table_to_rows
from t3d.trajectories.store import ROWS_PER_GROUP, damage_of
from t3d.types import Trajectory

_REDO = "rerun the same `t3d rollout` with --resume to redo it"
_REPLACE = "replace it by an intact copy"


@dataclass(frozen=True, slots=True)
class FolderState:
    """How far a rollout is, all processes that write it taken together.

    Attributes:
        num_shards, num_finished: of the whole, and of those that are there.
        num_rows: in the finished ones.
    """

    num_shards: int
    num_finished: int
    num_rows: int

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.num_finished == self.num_shards


def state_of(folder: str | Path) -> FolderState:
    """How far a folder's rollout is; raises `RequestError` if it is no trajectory folder."""
    folder = Path(folder)
    manifest = load_manifest(folder)
    num_rows = finished_shards(folder, manifest)
    return FolderState(manifest.num_shards, len(num_rows), sum(num_rows.values()))


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
        manifest = load_manifest(path)
        return _read_shards(path, manifest, _finished(path, manifest, allow_partial))
    return _read_file(path, _REPLACE)


def read_meta(path: str | Path) -> TrajectoryMeta:
    """Where the rows of a folder or parquet file come from; raises `RequestError` if it does not say."""
    path = _existing(path)
    if path.is_dir():
        return load_manifest(path).meta
    with _open_parquet(path, _REPLACE) as parquet:
        return meta_from_schema(parquet.schema_arrow, str(path))


def count(path: str | Path, *, allow_partial: bool = False) -> int:
    """The number of rows that `read` with the same arguments yields, without reading them; raises like it."""
    path = _existing(path)
    if path.is_dir():
        return sum(_finished(path, load_manifest(path), allow_partial).values())
    with _open_parquet(path, _REPLACE) as parquet:
        return int(parquet.metadata.num_rows)


def _finished(folder: Path, manifest: Manifest, allow_partial: bool) -> dict[int, int]:
    """The rows of each finished shard; these must be all of them unless `allow_partial`."""
    num_rows = finished_shards(folder, manifest)
    missing = [index for index in range(manifest.num_shards) if index not in num_rows]
    if missing and not allow_partial:
        raise RequestError(
            f"{folder} is unfinished: {len(missing)} of {manifest.num_shards} shards are missing, first "
            f"{shard_name(missing[0])}; rerun the same `t3d rollout` with --resume"
        )
    return num_rows


def _read_shards(folder: Path, manifest: Manifest, shards: Iterable[int]) -> Iterator[Trajectory]:
    for index in shards:
        if damage := damage_of(folder, manifest, index):
            raise RequestError(f"{damage}; {_REDO}")
        yield from _read_file(folder / shard_name(index), _REDO)


def _read_file(file: Path, cure: str) -> Iterator[Trajectory]:
    first_row = 0
    with _open_parquet(file, cure) as parquet:
        for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP):
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
        raise RequestError(f"{file} is no readable parquet file ({reason_of(error)}); {cure}") from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise RequestError(f"{path} does not exist; give a trajectory folder or a parquet file")
    return path

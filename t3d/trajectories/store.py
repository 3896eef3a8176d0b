"""Trajectory folders are written shard by shard: parquet files that appear whole or not at all.

runs/teacher/
  .manifest.json                        meta, request fingerprint, number of shards; written once
  .shard-00000-0f3a1c9be2d47756.json    record of a finished shard: its rows and sha256
  shard-00000.parquet                   appears by atomic rename, in any order
  .t3d-tmp-...                          being written; a dead process's is removed when the folder is opened again

All that is no shard has a hidden name, which readers of parquet folders (datasets, pyarrow, Spark) pass over. Any
number of processes, on any machines that share the folder, may write shards of one rollout at once: there is no file
that they all rewrite.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from t3d.checksums import sha256_of
from t3d.errors import RequestError, WorkError
from t3d.trajectories.appearing import TEMPORARY_PREFIX, appearing, reason_of, remove_leftovers
from t3d.trajectories.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    finished_shards,
    is_recorded,
    load_manifest,
    remove_records,
    save_manifest,
    save_record,
    shard_name,
)
from t3d.trajectories.parts import WHOLE, Part
from t3d.trajectories.schema import TrajectoryMeta, rows_to_table
from t3d.types import Trajectory

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 1024
"""What a reader holds in memory at a time."""
_ROWS_PER_SHARD = 4096  # of `write`


class TrajectoryWriter:
    """Writes a folder shard by shard, each one safely; what is finished survives any interruption.

    The caller cuts its work into `num_shards` fixed slices, writes the rows of slice i as shard i in any order, and
    after an interruption opens the folder with `resume=True` and redoes the slices that are not in `finished`. Several
    writers may have a folder open, each for a part of the shards. If two write the same shard, the last one's stays.

    Args:
        folder: created if need be.
        meta: where the rows come from.
        request_fingerprint: identifies the work list and all else that the rows depend on.
        num_shards: number of slices of the work list, at least 1.
        resume: continue a folder that the same request began. A part joins a folder that other parts began without it.
        part: the shards that this writer writes.

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
        part: Part = WHOLE,
    ) -> None:
        if num_shards < 1:
            raise ValueError(f"num_shards must be at least 1, not {num_shards}")
        self.folder = Path(folder)
        self.part = part
        self._manifest = Manifest(meta, request_fingerprint, num_shards)
        self._finished: set[int] = set()
        if self._is_begun():
            self._continue(resume)
        else:
            remove_leftovers(self.folder)
            save_manifest(self.folder, self._manifest)

    @property
    def finished(self) -> set[int]:
        """The numbers of this part's shards that need no more work."""
        return set(self._finished)

    @property
    def missing(self) -> list[int]:
        """The numbers of this part's shards that are still to be written, in order."""
        return [index for index in self.part.of(self._manifest.num_shards) if index not in self._finished]

    def write_shard(self, index: int, rows: Iterable[Trajectory]) -> None:
        """Write all rows of shard `index`; when this returns they are on disk and the shard is recorded as finished.

        Raises:
            RequestError: a row means nothing (see `t3d.trajectories.schema.check_table`).
            WorkError: no space is left, the folder is read-only, ...; the other shards stay readable.
        """
        file = self.folder / shard_name(index)
        self.write_table(index, rows_to_table(list(rows), self._manifest.meta, str(file)))

    def write_table(self, index: int, table: pa.Table) -> None:
        """`write_shard` for rows that are a table already, as `rows_to_table` gives it."""
        if index not in self.missing:
            raise ValueError(f"shard {index} is finished, or none of part {self.part} of {self._manifest.num_shards}")
        with appearing(self.folder / shard_name(index)) as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP, write_page_checksum=True
            )
            save_record(self.folder, index, Shard(table.num_rows, sha256_of(temporary)))
        self._finished.add(index)

    def _is_begun(self) -> bool:
        """Whether the folder holds a rollout; it is made if there is none, and refused if it holds something else."""
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{self.folder} is a file; choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = sorted(entry.name for entry in self.folder.iterdir())
        except OSError as error:
            raise WorkError(f"cannot write {self.folder}: {reason_of(error)}") from error
        foreign = [name for name in names if not name.startswith(TEMPORARY_PREFIX)]
        # Asked for after the look into the folder, since another part may begin it just now; where a network file
        # system answers from what it knew before, the look counts.
        if MANIFEST in names or (self.folder / MANIFEST).exists():
            return True
        if foreign:
            raise RequestError(f"{self.folder} holds {foreign[0]!r} and is no trajectory folder; choose another --out")
        return False

    def _continue(self, resume: bool) -> None:
        found = load_manifest(self.folder)
        if difference := found.first_difference(self._manifest):
            raise RequestError(f"{self.folder} was rolled out with {difference}; choose another --out")
        listed = finished_shards(self.folder, found)
        mine = self.part.of(found.num_shards)
        done = [index for index in mine if index in listed]
        if not resume and (done or self.part == WHOLE):
            whose = "this rollout" if self.part == WHOLE else f"part {self.part} of this rollout"
            raise RequestError(
                f"{self.folder} holds {whose} already, {len(done)} of {len(mine)} shards "
                "finished; add --resume to continue it, or choose another --out"
            )
        remove_leftovers(self.folder)
        if found.shards:
            save_manifest(self.folder, found)
        self._finished = {index for index in done if self._is_intact(index)}

    def _is_intact(self, index: int) -> bool:
        """Whether a shard's file fits a record; if not, the shard is recorded no longer."""
        damage = damage_of(self.folder, self._manifest, index)
        if damage:
            logger.warning("%s; it will be written again", damage)
            remove_records(self.folder, index)
        return damage is None


def write(path: str | Path, rows: Iterable[Trajectory], meta: TrajectoryMeta, resume: bool = False) -> None:
    """Write a complete trajectory folder, or with `resume` the rest of one of the same rows; raises like
    `TrajectoryWriter`.
    """
    rows = list(rows)
    starts = range(0, max(len(rows), 1), _ROWS_PER_SHARD)
    writer = TrajectoryWriter(path, meta, request_fingerprint="", num_shards=len(starts), resume=resume)
    for index in writer.missing:
        writer.write_shard(index, rows[starts[index] : starts[index] + _ROWS_PER_SHARD])


def damage_of(folder: Path, manifest: Manifest, index: int) -> str | None:
    """What is wrong with a finished shard's file, or None."""
    file = folder / shard_name(index)
    try:
        intact = is_recorded(folder, manifest, index, sha256_of(file))
    except OSError as error:
        return f"{file} cannot be read ({reason_of(error)})"
    return None if intact else f"{file} is damaged (its checksum differs)"

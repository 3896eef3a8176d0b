"""Trajectory files as the viewer shows them: some rows of one, and of another the rows of the same prompts."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from t3d.errors import RequestError
from t3d.trajectories import TrajectoryMeta, count, read, read_meta
from t3d.types import Trajectory

RowKey = tuple[str, int]
"""`prompt_id` and `sample`: by these the rows of two files belong together."""


@dataclass(frozen=True, slots=True)
class Source:
    """Some rows of a trajectory folder or file.

    Attributes:
        path: where they are.
        meta: how they were made.
        num_rows: rows that the file holds, of which these are some.
        rows: in the file's order; beside another file's of several with one key the first, and in that file's order.
    """

    path: Path
    meta: TrajectoryMeta
    num_rows: int
    rows: list[Trajectory]

    @property
    def name(self) -> str:
        """What pages call it: the last part of its path."""
        return Path(os.path.abspath(self.path)).name


def open_sources(path: Path, against: Path | None, limit: int) -> tuple[Source, Source | None]:
    """The first `limit` rows of a file; with `against`, of those that it has too, and its rows beside them.

    Of a large file no more rows than these are held in memory.

    Raises:
        RequestError: no such file, a damaged one, one without rows, two of different tokenizers, or without a common
            prompt.
    """
    meta, num_rows = _about(path)
    if against is None:
        return Source(path, meta, num_rows, list(islice(read(path), limit))), None
    other_meta, other_num_rows = _about(against)
    if meta.tokenizer_fingerprint != other_meta.tokenizer_fingerprint:
        raise RequestError(f"--against {against}: its tokenizer is not that of {path}, so tokens do not compare")
    rows = _first_rows(path, limit, {_key(row) for row in read(against)})
    if not rows:
        raise RequestError(f"--against {against}: has no row of the same prompt_id and sample as one of {path}")
    found = _first_rows(against, len(rows), rows)
    in_order = [found[key] for key in rows]
    return Source(path, meta, num_rows, list(rows.values())), Source(against, other_meta, other_num_rows, in_order)


def _about(path: Path) -> tuple[TrajectoryMeta, int]:
    """How a file's rows were made, and how many there are."""
    meta, num_rows = read_meta(path), count(path)
    if num_rows == 0:
        raise RequestError(f"{path} holds no rows; roll something out first")
    return meta, num_rows


def _first_rows(path: Path, limit: int, wanted: Container[RowKey]) -> dict[RowKey, Trajectory]:
    """The first rows of different keys, of the wanted ones."""
    return dict(islice(_distinct(path, wanted), limit))


def _distinct(path: Path, wanted: Container[RowKey]) -> Iterator[tuple[RowKey, Trajectory]]:
    seen = set()
    for row in read(path):
        key = _key(row)
        if key not in seen and key in wanted:
            seen.add(key)
            yield key, row


def _key(row: Trajectory) -> RowKey:
    return row.prompt_id, row.sample

"""Where the rows of a benchmark come from: a local file, or the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.errors import RequestError

ALL = "all"
"""The split that is every split of a source."""
SUFFIXES = (".jsonl", ".json", ".parquet")
ROWS_AT_A_TIME = 128
MAX_ROWS, MAX_BYTES = 5_000_000, 2**29
"""Of a Parquet file, unpacked; all of it is held in memory."""
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A data set of the hub.

    Attributes:
        repo_id: `owner/name`.
        config_name: of its configurations, where it has several.
        splits: that it has, by our names; `ALL` is all of them.
    """

    repo_id: str
    config_name: str | None = None
    splits: tuple[str, ...] = ("test",)


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, for messages.

    Attributes:
        fields: by name.
        where: "FILE, line 3", or "owner/name, train row 3"; rows of the hub are counted from 0, as there.
        default_id: for a row without an id of its own.
    """

    fields: Mapping[str, Any]
    where: str
    default_id: str

    def has(self, name: str) -> bool:
        """Whether there is such a field with something in it."""
        return self.fields.get(name) is not None

    def text(self, name: str, may_be_blank: bool = False) -> str:
        """A field that holds text, with line ends as Python writes them.

        Raises:
            RequestError: it is missing, blank or something else.
        """
        value = self._given(name)
        if not isinstance(value, str) or not (may_be_blank or value.strip()):
            raise RequestError(f"{self.where}: `{name}` must be text that is not blank, not {shown(value)}")
        return self.whole(name, value)

    def texts(self, name: str) -> list[str]:
        """A field that holds a list of texts, at least one.

        Raises:
            RequestError: it is missing, or something else.
        """
        value = self._given(name)
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise RequestError(f"{self.where}: `{name}` must be a list of texts, not {shown(value)}")
        return [self.whole(name, each) for each in value]

    def scalar(self, name: str) -> str:
        """A field that holds text or a number, as text.

        Raises:
            RequestError: it is missing, blank or something else.
        """
        value = self._given(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise RequestError(f"{self.where}: `{name}` must be text or a number, not {shown(value)}")
        return self.whole(name, str(value))

    def own_id(self, *names: str) -> str:
        """The first of the fields `names` that is there, else `default_id`."""
        return next((self.scalar(name) for name in names if self.has(name)), self.default_id)

    def whole(self, name: str, text: str) -> str:
        """A field's text with line ends as Python writes them, that can be written to files and given to tokenizers.

        Raises:
            RequestError: it holds half of a surrogate pair, as JSON can and UTF-8 cannot.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])[1:-1]
            raise RequestError(f"{self.where}: `{name}` holds {half}, half of a character; write the whole") from None
        return text.replace("\r\n", "\n")

    def _given(self, name: str) -> Any:
        if not self.has(name):
            raise RequestError(f"{self.where}: no field `{name}`; it has {', '.join(self.fields) or 'none'}")
        return self.fields[name]


def shown(value: object) -> str:
    """The beginning of a value, for a message."""
    return (json.dumps(value[:40]) if isinstance(value, str) else json.dumps(value, default=repr))[:40]


def read_rows(data: str | None, hub: HubDataset | None, split: str) -> list[Row]:
    """The rows of one split.

    Args:
        data: JSON Lines file, `.json` file of one array, `.parquet` file, or hub id (`owner/name` or
            `owner/name@revision`); None takes `hub`.
        hub: the task's own source; None if it has none, and needs `data`.
        split: if the rows have a field `split`, those of this one are taken; a file without that field is the split.

    Raises:
        RequestError: no such file, data set or split, or rows that cannot be read.
    """
    if data is None:
        if hub is None:
            raise RequestError("this task has no data of its own: give --data FILE")
        if split not in (*hub.splits, ALL):
            raise RequestError(f"{hub.repo_id} has no split {split!r}: choose one of {', '.join(hub.splits)}")
        return _hub_rows(hub.repo_id, hub.config_name, None, split)
    hub_id = _HUB_ID.fullmatch(data)
    if hub_id and not os.path.exists(data) and Path(data).suffix not in SUFFIXES:
        config_name = hub.config_name if hub is not None and hub_id["repo"] == hub.repo_id else None
        return _hub_rows(hub_id["repo"], config_name, hub_id["revision"], split)
    rows = list(_file_rows(Path(data)))
    if not rows:
        raise RequestError(f"{data} holds no rows; write one JSON object a line")
    return _of_split(rows, split, data)


def _of_split(rows: Iterable[Row], split: str, data: str) -> list[Row]:
    splits = [(row, row.fields.get("split", split)) for row in rows]
    chosen = [row for row, its_split in splits if split in (ALL, its_split)]
    if not chosen:
        there = ", ".join(sorted({str(its_split)[:40] for _, its_split in splits})[:20])
        raise RequestError(f"{data} has no rows of split {split!r}: choose one of {there}, or {ALL}")
    return chosen


def _file_rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        named = _numbered(_read_parquet(file), file, "row")
    else:
        text = _read_text(file)
        is_array = file.suffix == ".json" and text.lstrip().startswith("[")
        named = _numbered(_parse(text, str(file)), file, "entry") if is_array else _lines(text, file)
    for fields, where, default_id in named:
        if not isinstance(fields, dict):
            raise RequestError(f"{where}: not a JSON object; write one object a line")
        yield Row(fields, where, default_id)


def _numbered(values: Iterable[Any], file: Path, unit: str) -> Iterator[tuple[Any, str, str]]:
    """(value, where, default id) of each."""
    for number, value in enumerate(values, start=1):
        yield value, f"{file}, {unit} {number}", f"{file.stem}/{number}"


def _lines(text: str, file: Path) -> Iterator[tuple[Any, str, str]]:
    """`_numbered`, of the lines that are not blank."""
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold the other ends of lines
        if line.strip():
            where = f"{file}, line {number}"
            yield _parse(line, where), where, f"{file.stem}/{number}"


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value is too long or too deep"
        raise RequestError(f"{where}: not JSON ({reason}); write one object a line") from None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise _unreadable(file, error) from None


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    num_bytes = 0
    try:
        with file.open("rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            is_too_large = parquet.metadata.num_rows > MAX_ROWS
            for batch in () if is_too_large else parquet.iter_batches(ROWS_AT_A_TIME):
                num_bytes += sum(map(_unpacked_bytes, batch.columns))
                is_too_large = num_bytes > MAX_BYTES  # a repeated value takes no room in the file
                if is_too_large:
                    break
                rows += batch.to_pylist()
    except Exception as error:  # of the disk, of pyarrow, and of values that Python has no type for
        raise _unreadable(file, error) from None
    if is_too_large:
        raise RequestError(f"{file} unpacks to more than {MAX_ROWS:,} rows or {MAX_BYTES >> 20:,} MiB; split it")
    return rows


def _unpacked_bytes(column: Any) -> int:
    """Of a column of pyarrow; one that holds each value once counts as if it held them all."""
    return int((column.dictionary_decode() if hasattr(column, "dictionary_decode") else column).nbytes)


def _unreadable(file: Path, error: Exception) -> RequestError:
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return RequestError(f"cannot read {file} ({reason}); name a JSON Lines, JSON or Parquet file, or a hub id")


def _hub_rows(repo_id: str, config_name: str | None, revision: str | None, split: str) -> list[Row]:
    """The rows of a data set of the hub, which is downloaded once and then kept by `datasets`."""
    import datasets

    try:
        found = datasets.load_dataset(repo_id, config_name, revision=revision)
    except Exception as error:  # no network, no such data set, a loading script, rows of different columns, ...
        reason = str(error).strip().split("\n")[0]
        raise RequestError(f"data {repo_id} cannot be had from the hub ({reason}); give --data FILE") from error
    if split != ALL and split not in found:
        raise RequestError(f"{repo_id} has no split {split!r}: choose one of {', '.join(found)}, or {ALL}")
    return [
        Row(fields, f"{repo_id}, {name} row {number}", f"{repo_id.split('/')[1]}/{name}/{number}")
        for name in (found if split == ALL else [split])
        for number, fields in enumerate(found[name])
    ]

"""Trajectory folders and files, and parquet files that claim much."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzzing.drawing import Draw, as_json, broken, broken_bytes, pick
from fuzzing.targets import PICKLE, Case, Target, json_bombs

SHARD = "shard-00000.parquet"
MANIFEST = ".manifest.json"
RECORD = "record"
"""Of a case: the shard's record, whose name is the shard's checksum."""


class TrajectoryTarget(Target):
    """Every reader of trajectories: state, rows, and the viewer's page."""

    name = "trajectories"
    mentions = ("shard-", "rows", "manifest", "folder", "view")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._rows, self._meta = _seed_rows(folder)
        self._manifest = {"meta": self._meta, "request_fingerprint": "f", "num_shards": 1}

    def make(self, draw: Draw) -> Case:
        """Other values in columns, other columns, other metadata, or other bytes."""
        rows, meta, manifest, names = self._rows, self._meta, self._manifest, False
        shard = None
        match draw.below(5):
            case 0:
                rows = broken(draw, rows)
            case 1:
                rows, names = _with_another_column(draw, rows), True
            case 2:
                meta = broken(draw, meta)
            case 3:
                manifest = broken(draw, manifest)
            case 4:
                shard = broken_bytes(draw, _parquet(rows, meta, False), most=4)
        shard = _parquet(rows, meta, names) if shard is None else shard
        record = {"num_rows": len(rows), "sha256": sha256(shard).hexdigest()}
        if draw.below(4) == 3:
            record = broken(draw, record)
        return {
            SHARD: shard,
            MANIFEST: as_json(draw, manifest),
            RECORD: json.dumps(record).encode("utf-8", "surrogatepass"),
        }

    def shaped(self, value: Any) -> Case:
        """A manifest whose meta has another value somewhere."""
        manifest = {**self._manifest, "meta": {**self._meta, "prompt": value, "block_size": 4}}
        shard = _parquet(self._rows, self._meta, False)
        record = {"num_rows": len(self._rows), "sha256": sha256(shard).hexdigest()}
        return {
            SHARD: shard,
            MANIFEST: json.dumps(manifest).encode("utf-8", "surrogatepass"),
            RECORD: json.dumps(record).encode(),
        }

    def run(self, case: Case) -> None:
        """As a folder, and its shard as a file."""
        from t3d.errors import RequestError
        from t3d.trajectories import count, read, read_meta
        from t3d.trajectories.reading import state_of
        from t3d.viewer.writing import write_view

        folder = self.folder / "rows"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in (SHARD, MANIFEST):
            if name in case:
                (folder / name).write_bytes(case[name])
        if RECORD in case:
            (folder / f".shard-00000-{sha256(case[SHARD]).hexdigest()[:16]}.json").write_bytes(case[RECORD])
        refusal: RequestError | None = None
        for path in (folder, folder / SHARD):
            for reader in (
                read_meta,
                count,
                lambda path: list(read(path)),
                lambda path: write_view(path, self.folder / "view.html"),
                state_of,
            ):
                if reader is state_of and path is not folder:
                    continue
                try:
                    reader(path)
                except RequestError as error:
                    refusal = refusal or error
        if refusal is not None:
            raise refusal

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Of JSON in the manifest, in the record and in the metadata; of parquet."""
        shard = _parquet(self._rows, self._meta, False)
        manifest, record = (
            json.dumps(self._manifest).encode(),
            json.dumps({"num_rows": 3, "sha256": sha256(shard).hexdigest()}).encode(),
        )
        for what, content in json_bombs(self._manifest):
            yield f"manifest: {what}", {SHARD: shard, MANIFEST: content, RECORD: record}
            yield f"record: {what}", {SHARD: shard, MANIFEST: manifest, RECORD: content}
        for num_shards in (10**12, -1, 0, 1.5, "2", None, True):
            text = json.dumps({**self._manifest, "num_shards": num_shards}).encode()
            yield f"{num_shards} shards", {SHARD: shard, MANIFEST: text, RECORD: record}
        for block_size in (10**6, 0, -1, "4", 10**30):
            other = {**self._meta, "block_size": block_size}
            content = _parquet(self._rows, other, False)
            yield (
                f"block size {block_size}",
                {
                    SHARD: content,
                    MANIFEST: json.dumps({**self._manifest, "meta": other}).encode(),
                    RECORD: json.dumps({"num_rows": 3, "sha256": sha256(content).hexdigest()}).encode(),
                },
            )
        for what, content in _bombs({b"t3d": json.dumps(self._meta)}, "prompt_ids", pa.list_(pa.int32())):
            yield what, {SHARD: content, MANIFEST: manifest}


def prompt_bombs() -> Iterator[tuple[str, bytes]]:
    """Parquet files of prompts."""
    yield from _bombs({}, "prompt", pa.string())
    for what, column in (
        ("times beyond Python's", pa.array([2**60], pa.timestamp("ms"))),
        ("a zone that is none", pa.array([1], pa.timestamp("s", tz="No/Where"))),
        ("bytes", pa.array([b"\xff\0"])),
        ("a map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))),
        ("a duration", pa.array([2**62], pa.duration("s"))),
        ("text that is no UTF-8", pa.array([b"\xff"]).view(pa.string())),
        ("a decimal", pa.array([1], pa.decimal128(38, 0))),
        ("a dictionary", pa.array(["a"]).dictionary_encode()),
    ):
        try:
            yield what, _write(pa.table({"prompt": column, "answer": column, "id": column}))
            yield f"{what}, as answer", _write(pa.table({"prompt": ["p"], "answer": column}))
            yield f"{what}, as split", _write(pa.table({"prompt": ["p"], "split": column, "cases": column}))
        except pa.ArrowException:
            continue
    yield (
        "two columns of one name",
        _write(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])),
    )


def _bombs(metadata: dict, name: str, kind: pa.DataType) -> Iterator[tuple[str, bytes]]:
    """Claims of a million million rows, repeats that take no room in the file, and what is no parquet."""
    small = _write(pa.table({name: pa.array([[1]] if pa.types.is_list(kind) else ["a"], kind)}, metadata=metadata))
    yield "a million million rows", _claiming(small, 10**12)
    yield "rows below zero", _claiming(small, -1)
    long = pa.array([[7] * 1000] * 200 if pa.types.is_list(kind) else ["y" * 10**6] * 10, kind)
    yield "the same long value again and again", _write(pa.table({name: long}, metadata=metadata))
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["y" * 10**6]))
    yield "the same long value a hundred thousand times", _write(pa.table({name: once}, metadata=metadata))
    yield "ten million rows of nothing", _write(pa.table({name: pa.nulls(10**7, kind)}, metadata=metadata))
    deep = pa.nulls(1, pa.int32()).type
    for _ in range(60):
        deep = pa.list_(deep)
    yield "lists sixty deep", _write(pa.table({name: pa.nulls(1, deep)}, metadata=metadata))
    yield "a footer longer than the file", small[:-8] + b"\xff\xff\xff\x7fPAR1"
    yield "only the magic", b"PAR1PAR1"
    yield "a pickle", PICKLE
    yield "nothing", b""


def _claiming(data: bytes, num_rows: int) -> bytes:
    """A file whose footer says another number of rows: thrift's field 3 of FileMetaData, a zigzag varint of 64 bits."""
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    old = b"\x16\x02\x19"  # i64 field: 1 row; then the list of row groups
    assert footer.count(old) >= 1
    footer = footer.replace(old, b"\x16" + _varint(2 * num_rows if num_rows >= 0 else -2 * num_rows - 1) + b"\x19")
    footer = footer.replace(b"\x16\x02\x26", b"\x16" + _varint(2 * abs(num_rows)) + b"\x26")
    return data[: -8 - int.from_bytes(data[-8:-4], "little")] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _varint(number: int) -> bytes:
    found = []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _seed_rows(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and metadata as plain values."""
    row = {
        "prompt_id": "a",
        "sample": 0,
        "prompt_ids": [5, 6],
        "response_ids": [8, 9, 3, 2],
        "reveal_step": [1, 2, 1, 2],
        "confidence": [0.5, 0.25, 1.0, 0.9],
        "num_forwards": 5,
        "finish_reason": "stop",
        "prompt_text": "p",
        "response_text": "r",
        "answer": "7",
        "seed": 1,
    }
    meta = {
        "model": "story-mini",
        "revision": None,
        "tokenizer_fingerprint": "0" * 16,
        "mask_token_id": 3,
        "eos_token_ids": [1],
        "block_size": 4,
        "steps_per_block": 2,
        "rule": "low_confidence_static",
        "temperature": 0.1,
        "top_k": 0,
        "top_p": 1.0,
        "threshold": 0.9,
        "entropy_bound": 0.5,
        "max_new_tokens": 21,
        "seed": 0,
        "software_version": "0.1.0",
        "prompt": {"style": "plain", "instruction": "", "system": None, "prefix": "", "template_options": {}},
    }
    return [row, {**row, "prompt_id": "b", "answer": None}, {**row, "sample": 1, "finish_reason": "length"}], meta


def _with_another_column(draw: Draw, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which one column is gone, of another name, or of the same value throughout."""
    from fuzzing.drawing import VALUES

    name = pick(draw, list(rows[0]))
    if draw.below(3) == 0:
        return [{key: value for key, value in row.items() if key != name} for row in rows]
    value = pick(draw, VALUES)
    return [{**row, name: value} for row in rows]


def _parquet(rows: list[Any], meta: Any, as_it_comes: bool) -> bytes:
    """A file of rows; each column of the schema's type if its values can be that, else of what pyarrow makes of it."""
    from t3d.trajectories.schema import SCHEMA

    names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) if isinstance(row, dict) else None for row in rows]
        columns[name.encode(errors="replace").decode()] = _column(values, None if as_it_comes else _type(SCHEMA, name))
    metadata = {b"t3d": json.dumps(meta).encode("utf-8", "surrogatepass")}
    try:
        return _write(pa.table(columns).replace_schema_metadata(metadata))
    except pa.ArrowException:  # a type that parquet does not have
        texts = {name: pa.array([repr(each) for each in column.to_pylist()]) for name, column in columns.items()}
        return _write(pa.table(texts).replace_schema_metadata(metadata))


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    for chosen in (kind, None):
        try:
            return pa.array(values, type=chosen)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
            continue
    return pa.array([repr(value) for value in values])


def _write(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True, store_schema=True)
    return stream.getvalue()

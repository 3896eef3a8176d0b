"""Trajectories on disk: what goes in comes out, whatever interrupts it; whatever is damaged is refused by name."""

import errno
import json
import os
import re
import socket
import subprocess
import time
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t3d.checksums import unsealed
from t3d.errors import RequestError, WorkError
from t3d.trajectories import SCHEMA, TrajectoryMeta, TrajectoryWriter, count, read, read_meta, write
from t3d.trajectories.appearing import PLACE
from t3d.types import Trajectory

META = TrajectoryMeta(
    model="some/model",
    revision=None,
    tokenizer_fingerprint="abc",
    mask_token_id=599,
    eos_token_ids=(0, 7),
    block_size=4,
    steps_per_block=2,
    rule="low_confidence_static",
    temperature=0.1,
    top_k=0,
    top_p=1.0,
    threshold=0.9,
    entropy_bound=0.5,
    max_new_tokens=64,
    seed=0,
    software_version="0.1.0",
)
INT32 = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def make_row(number: int, length: int = 6) -> Trajectory:
    return Trajectory(
        prompt_id=f"question-{number}",
        sample=number % 2,
        prompt_ids=[17, 4, number],
        response_ids=[number + i for i in range(length)],
        reveal_step=[1 + i // 2 for i in range(length)],
        confidence=[0.5] * length,
        num_forwards=4,
        finish_reason="stop",
        prompt_text=f"Q{number}",
        response_text="#### 42",
        answer="42" if number % 3 else None,
        seed=number,
    )


SLICES = [[make_row(3 * i + j) for j in range(3)] for i in range(4)]  # the work list, cut into four shards
ROWS = [row for rows in SLICES for row in rows]


def open_writer(folder, meta=META, fingerprint="f00d", num_shards=len(SLICES), resume=False) -> TrajectoryWriter:
    return TrajectoryWriter(folder, meta, fingerprint, num_shards, resume)


def write_slices(writer: TrajectoryWriter, indices) -> None:
    for index in indices:
        writer.write_shard(index, SLICES[index])


def finish(folder) -> None:
    """What a resumed rollout does."""
    writer = open_writer(folder, resume=True)
    write_slices(writer, set(range(len(SLICES))) - writer.finished)


@pytest.fixture
def complete(tmp_path):
    """A finished folder of four shards."""
    folder = tmp_path / "complete"
    write_slices(open_writer(folder), range(len(SLICES)))
    return folder


@pytest.fixture
def half(tmp_path):
    """A folder with shards 0 and 2 of four finished."""
    folder = tmp_path / "half"
    write_slices(open_writer(folder), [2, 0])
    return folder


def shard(folder, index):
    return folder / f"shard-{index:05d}.parquet"


def flip_bit(file, position, mask=4):
    content = bytearray(file.read_bytes())
    content[position] ^= mask
    file.write_bytes(content)


@st.composite
def trajectories(draw):
    length = draw(st.integers(0, 12))
    return Trajectory(
        prompt_id=draw(TEXT),
        sample=draw(INT32),
        prompt_ids=draw(st.lists(INT32, max_size=5)),
        response_ids=draw(st.lists(INT32, min_size=length, max_size=length)),
        reveal_step=draw(st.lists(st.integers(1, 2**31 - 1), min_size=length, max_size=length)),
        confidence=draw(st.lists(st.floats(0, 1, width=32), min_size=length, max_size=length)),
        num_forwards=draw(INT32),
        finish_reason=draw(st.sampled_from(["stop", "length", "error"])),
        prompt_text=draw(TEXT),
        response_text=draw(TEXT),
        answer=draw(st.none() | TEXT),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


# What goes in comes out


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(trajectories(), max_size=8))
def test_rows_survive_the_round_trip(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("round") / "trip"
    write(folder, rows, META)
    assert list(read(folder)) == rows
    assert list(read(shard(folder, 0))) == rows
    assert count(folder) == len(rows)
    assert read_meta(folder) == read_meta(shard(folder, 0)) == META


def test_write_splits_many_rows_and_keeps_their_order(tmp_path):
    rows = [make_row(i, length=2) for i in range(4100)]
    write(tmp_path / "many", rows, META)
    assert len(list((tmp_path / "many").glob("shard-*.parquet"))) == 2
    assert list(read(tmp_path / "many")) == rows
    assert count(tmp_path / "many") == len(rows)


def test_confidence_is_rounded_to_float32(tmp_path):
    write(tmp_path / "out", [replace(make_row(1, length=1), confidence=[0.1])], META)
    (row,) = read(tmp_path / "out")
    assert row.confidence == [float(np.float32(0.1))]


def test_numpy_ids_are_welcome(tmp_path):
    row = make_row(1)
    write(tmp_path / "out", [replace(row, response_ids=np.array(row.response_ids, dtype=np.int64))], META)
    assert list(read(tmp_path / "out")) == [row]


def test_reading_is_lazy_and_in_shard_order(tmp_path):
    writer = open_writer(tmp_path / "out")
    write_slices(writer, [3, 1, 0, 2])
    rows = read(tmp_path / "out")
    shard(tmp_path / "out", 3).unlink()
    assert [next(rows) for _ in range(9)] == ROWS[:9]
    with pytest.raises(RequestError, match=r"shard-00003\.parquet.*--resume"):
        next(rows)


@pytest.mark.parametrize("how", ["data_files", "data_dir", "folder"])
def test_datasets_reads_the_folder(complete, tmp_path, monkeypatch, how):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    where = {
        "data_files": {"path": "parquet", "data_files": str(complete / "*.parquet")},
        "data_dir": {"path": "parquet", "data_dir": str(complete)},
        "folder": {"path": str(complete)},
    }[how]
    table = datasets.load_dataset(**where, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == SCHEMA.names
    assert [Trajectory(**row) for row in table] == ROWS


def test_pyarrow_reads_the_folder_with_its_metadata(complete):
    table = pq.read_table(complete)
    assert table.schema.equals(SCHEMA)
    assert json.loads(table.schema.metadata[b"t3d"])["mask_token_id"] == 599


def test_a_file_with_wider_and_more_columns_is_read(tmp_path):
    table = pa.Table.from_pylist([{**vars_of(row), "note": "mine"} for row in ROWS])  # int64, float64
    pq.write_table(table, tmp_path / "wide.parquet")
    assert list(read(tmp_path / "wide.parquet")) == ROWS
    with pytest.raises(RequestError, match="no t3d metadata"):
        read_meta(tmp_path / "wide.parquet")


def vars_of(row: Trajectory) -> dict:
    return {field.name: getattr(row, field.name) for field in fields(row)}


# Interruption


@pytest.mark.parametrize("done", [[], [0], [3, 1], [0, 1, 2]])
def test_resumed_equals_uninterrupted(tmp_path, complete, done):
    folder = tmp_path / "resumed"
    write_slices(open_writer(folder), done)
    writer = open_writer(folder, resume=True)
    assert writer.finished == set(done)
    finish(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in complete.iterdir()
    }
    assert list(read(folder)) == ROWS


def test_what_a_kill_leaves_behind_is_cleared_and_redone(half):
    (half / ".t3d-tmp-shard-00001.parquet").write_bytes(b"PAR1 half a shard")  # by an earlier version
    (half / f".t3d-tmp-{dead_pid()}@{PLACE}@shard-00001.parquet").write_bytes(b"PAR1 half a shard")
    (half / f".shard-00003-{'0' * 16}.json").write_text('{"num_rows": 3, "sha256": "00"}')  # killed before the rename
    writer = open_writer(half, resume=True)
    assert writer.finished == {0, 2}
    assert not list(half.glob(".t3d-tmp-*"))
    finish(half)
    assert list(read(half)) == ROWS


def test_a_folder_killed_before_its_manifest_is_begun_anew(tmp_path):
    (tmp_path / ".t3d-tmp-.manifest.json").write_text("{")
    write(tmp_path, ROWS, META)
    assert list(read(tmp_path)) == ROWS


def dead_pid() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_living_process_is_writing_is_left_alone(half):
    another_container = f"{socket.gethostname()}-4026530000"
    names = [f"{os.getppid()}@{PLACE}@", f"{dead_pid()}@another-host-1@", f"{dead_pid()}@{another_container}@"]
    files = [half / f".t3d-tmp-{name}shard-00001.parquet" for name in names]
    for file in files:
        file.write_bytes(b"PAR1 half a shard")
    open_writer(half, resume=True)
    assert all(file.exists() for file in files)
    long_ago = time.time() - 2 * 3600
    for file in files:
        os.utime(file, (long_ago, long_ago))
    open_writer(half, resume=True)
    assert [file.exists() for file in files] == [True, False, False]  # whether the others live cannot be asked


@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_redone_on_resume(complete, caplog, harm):
    damage(shard(complete, 1), harm)
    writer = open_writer(complete, resume=True)
    assert writer.finished == {0, 2, 3}
    assert ("shard-00001.parquet is damaged" in caplog.text) == (harm != "missing")
    with pytest.raises(RequestError, match="1 of 4 shards are missing"):
        read(complete)
    finish(complete)
    assert list(read(complete)) == ROWS


def test_resuming_a_finished_folder_leaves_nothing_to_do(complete):
    before = {file: file.stat().st_mtime_ns for file in complete.iterdir()}
    assert open_writer(complete, resume=True).finished == {0, 1, 2, 3}
    assert {file: file.stat().st_mtime_ns for file in complete.iterdir()} == before


def as_an_earlier_version(folder):
    """Without records: what is finished stood in the manifest."""
    manifest = unsealed((folder / ".manifest.json").read_text())
    records = sorted(folder.glob(".shard-*.json"))
    shards = [{"index": int(file.name[7:12]), **unsealed(file.read_text())} for file in records]
    (folder / ".manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
    for file in records:
        file.unlink()


def test_a_folder_of_an_earlier_version_is_read_and_gone_on_with(half, complete, caplog):
    as_an_earlier_version(half)
    assert count(half, allow_partial=True) == 6
    assert list(read(half, allow_partial=True)) == SLICES[0] + SLICES[2]
    flip_bit(shard(half, 2), 100)
    with pytest.raises(RequestError, match=r"shard-00002\.parquet is damaged"):
        list(read(half, allow_partial=True))
    assert open_writer(half, resume=True).finished == {0}
    finish(half)
    assert {file.name: file.read_bytes() for file in half.iterdir()} == {
        file.name: file.read_bytes() for file in complete.iterdir()
    }


def test_an_unfinished_folder_is_read_only_on_demand(half):
    for refused in (read, count):
        with pytest.raises(RequestError, match=r"2 of 4 shards are missing.*t3d rollout.*--resume"):
            refused(half)
    assert list(read(half, allow_partial=True)) == SLICES[0] + SLICES[2]
    assert count(half, allow_partial=True) == 6
    assert read_meta(half) == META


# Folders that are refused


@pytest.mark.parametrize(
    "change, named",
    [
        ({"meta": replace(META, temperature=0.7)}, "temperature 0.1, not 0.7"),
        ({"meta": replace(META, seed=9, revision="r2")}, "revision None, not 'r2'"),
        ({"fingerprint": "beef"}, "request_fingerprint 'f00d', not 'beef'"),
        ({"num_shards": 5}, "num_shards 4, not 5"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_rollout_is_refused_by_its_first_difference(half, change, named, resume):
    with pytest.raises(RequestError, match=re.escape(named) + ".*another --out"):
        open_writer(half, **change, resume=resume)
    assert count(half, allow_partial=True) == 6


def test_the_same_rollout_wants_resume(half, complete):
    with pytest.raises(RequestError, match=r"2 of 4 shards finished; add --resume"):
        open_writer(half)
    with pytest.raises(RequestError, match=r"4 of 4 shards finished.*another --out"):
        open_writer(complete)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(RequestError, match=r"'thesis\.tex'.*another --out"):
            open_writer(tmp_path, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RequestError, match="a file; choose another --out"):
        open_writer(tmp_path / "thesis.tex")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00", '{"shards": [{}]}', '{"meta": {}, "shards": []}'])
def test_a_broken_manifest_is_one_clear_line(complete, text):
    (complete / ".manifest.json").write_text(text)
    for use in (read, count, read_meta, open_writer):
        with pytest.raises(RequestError, match=r"\.manifest\.json cannot be read") as caught:
            use(complete)
        assert "\n" not in str(caught.value)


def test_a_path_that_is_no_trajectories_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for use in (read, count, read_meta):
        with pytest.raises(RequestError, match=r"has no \.manifest\.json"):
            use(tmp_path)
        with pytest.raises(RequestError, match="does not exist"):
            use(tmp_path / "absent")
        with pytest.raises(RequestError, match=r"notes\.txt is no readable parquet file"):
            list(use(tmp_path / "notes.txt"))


# Damage


def damage(file, harm: str) -> None:
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        flip_bit(file, len(content) // 3)


@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_refused_by_name(complete, harm):
    damage(shard(complete, 2), harm)
    with pytest.raises(RequestError, match=r"shard-00002\.parquet.*--resume"):
        list(read(complete))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_a_folder_is_noticed(complete, data):
    file = shard(complete, 1)
    intact = file.read_bytes()
    flip_bit(file, data.draw(st.integers(0, len(intact) - 1)))
    with pytest.raises(RequestError, match=r"shard-00001\.parquet"):
        list(read(complete))
    file.write_bytes(intact)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_is_refused_by_name(complete, data):
    file = shard(complete, 1)
    content = file.read_bytes()
    lone = complete.parent / "lone.parquet"
    lone.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(RequestError, match=r"lone\.parquet.*intact copy"):
        list(read(lone))


def test_no_flipped_bit_in_a_column_of_a_lone_file_changes_its_rows(complete):
    lone = shard(complete, 1)
    intact = lone.read_bytes()
    column = pq.ParquetFile(lone).metadata.row_group(0).column(SCHEMA.get_field_index("response_ids"))
    refused = 0
    for position in range(column.dictionary_page_offset, column.data_page_offset + column.total_compressed_size // 2):
        flip_bit(lone, position, mask=1)
        try:
            assert list(read(lone)) == SLICES[1]  # a header has bits that nobody reads
        except RequestError:
            refused += 1
        lone.write_bytes(intact)
    assert refused > 20


# Rows that mean nothing


BAD_ROWS = [
    ({"reveal_step": [1, 0]}, "reveal_step must be at least 1"),
    ({"reveal_step": [1, -1]}, "reveal_step must be at least 1"),
    ({"reveal_step": [1]}, "reveal_step and response_ids differ in length"),
    ({"confidence": [0.5]}, "confidence and response_ids differ in length"),
    ({"finish_reason": ""}, "finish_reason must be one of stop, length, error"),
    ({"finish_reason": None}, "finish_reason is missing"),
    ({"response_ids": None}, "response_ids is missing"),
    ({"response_ids": [5, None]}, "response_ids has a missing value"),
]


@pytest.mark.parametrize("change, named", BAD_ROWS)
def test_a_bad_row_is_refused_by_file_and_row(tmp_path, change, named):
    rows = [vars_of(make_row(i, length=2)) for i in range(1100)]
    rows[1050].update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "bad.parquet")
    with pytest.raises(RequestError, match=re.escape("bad.parquet, row 1050: " + named)):
        list(read(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"reveal_step": [1, 0]}, "row 1: reveal_step"),
        ({"finish_reason": "done"}, "row 1: finish_reason"),
        ({"response_ids": [1, 2**31]}, "a value of response_ids is not"),
        ({"seed": "zero"}, "a value of seed is not int64"),
        ({"prompt_text": "\ud800"}, "a value of prompt_text is not string"),
    ],
)
def test_a_bad_row_is_never_written(tmp_path, change, named):
    rows = [make_row(0), replace(make_row(1, length=2), **change)]
    with pytest.raises(RequestError, match=re.escape(named)):
        write(tmp_path / "out", rows, META)
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda t: t.drop_columns(["reveal_step"]), "no column 'reveal_step'"),
        (lambda t: t.set_column(1, "sample", pa.array(["x"] * t.num_rows)), "wrong type"),
    ],
)
def test_another_kind_of_table_is_refused(tmp_path, complete, make, named):
    pq.write_table(make(pq.read_table(complete)), tmp_path / "other.parquet")
    with pytest.raises(RequestError, match=rf"other\.parquet.*{named}"):
        list(read(tmp_path / "other.parquet"))


def test_metadata_of_another_version_is_refused_by_field(tmp_path, complete):
    values = META.to_dict()
    for wrong, named in [({**values, "mood": 1}, "mood"), ({"model": "m"}, "block_size")]:
        table = pq.read_table(complete).replace_schema_metadata({"t3d": json.dumps(wrong)})
        pq.write_table(table, tmp_path / "other.parquet")
        with pytest.raises(RequestError, match=rf"other\.parquet.*'{named}'"):
            read_meta(tmp_path / "other.parquet")


# A disk that refuses


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(table, where, **options):
    with open(where, "wb") as stream:
        stream.write(b"PAR1")
    no_space()


@pytest.mark.parametrize(
    "target, failure",
    [
        ("pyarrow.parquet.write_table", half_written),
        ("os.replace", no_space),
        ("os.fsync", no_space),
    ],
)
def test_no_space_is_one_line_and_loses_nothing(half, monkeypatch, target, failure):
    writer = open_writer(half, resume=True)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(target, failure)
        with pytest.raises(WorkError, match=r"cannot write .*/\.?shard-00001.*: No space left on device$"):
            writer.write_shard(1, SLICES[1])
    assert not list(half.glob(".t3d-tmp-*"))
    assert writer.finished == {0, 2}
    assert list(read(half, allow_partial=True)) == SLICES[0] + SLICES[2]
    write_slices(writer, [1, 3])  # space was made
    assert list(read(half)) == ROWS


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_no_space_for_a_record_or_its_shard_only_repeats_the_shard(half, monkeypatch, ending):
    real_replace = os.replace

    def refuse(source, target):
        return no_space() if target.suffix == ending else real_replace(source, target)

    writer = open_writer(half, resume=True)
    with monkeypatch.context() as full_disk:
        full_disk.setattr("os.replace", refuse)
        with pytest.raises(WorkError, match=rf"shard-00001.*{ending}: No space left"):
            writer.write_shard(1, SLICES[1])
    assert not shard(half, 1).exists()
    assert writer.finished == open_writer(half, resume=True).finished == {0, 2}
    finish(half)
    assert list(read(half)) == ROWS


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"cannot write .*file/out: Not a directory"):
        open_writer(tmp_path / "file" / "out")


def test_an_interrupted_shard_leaves_no_temporary_file(half, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    writer = open_writer(half, resume=True)
    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(1, SLICES[1])
    assert not list(half.glob(".t3d-tmp-*"))


@pytest.mark.parametrize("index", [-1, 4, 0])
def test_a_shard_is_written_once_and_within_bounds(half, index):
    with pytest.raises(ValueError, match=f"shard {index}"):
        open_writer(half, resume=True).write_shard(index, SLICES[0])

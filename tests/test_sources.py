"""Rows of files and of the hub: every form gives the same rows, and what cannot be read is one line."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t3d.errors import RequestError
from t3d.tasks.sources import ALL, HubDataset, read_rows

ROWS = [
    {"id": "a", "split": "train", "n": 1},
    {"id": "b", "split": "test", "n": 2},
    {"id": "c", "split": "train", "n": 3},
]


def write(folder, name, *lines):
    """A file of these lines, text or bytes."""
    path = folder / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def fields(rows):
    return [dict(row.fields) for row in rows]


def as_lines(folder):
    return write(folder, "rows.jsonl", json.dumps(ROWS[0]), "", *map(json.dumps, ROWS[1:]), "")


def as_array(folder):
    return write(folder, "rows.json", json.dumps(ROWS, indent=1))


def as_lines_called_json(folder):
    return write(folder, "rows.json", *map(json.dumps, ROWS))


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return str(folder / "rows.parquet")


@pytest.mark.parametrize("make", [as_lines, as_array, as_lines_called_json, as_parquet])
def test_every_form_gives_the_same_rows(make, tmp_path):
    data = make(tmp_path)
    assert fields(read_rows(data, None, ALL)) == ROWS
    assert fields(read_rows(data, None, "train")) == [ROWS[0], ROWS[2]]
    assert fields(read_rows(data, HubDataset("owner/name"), "test")) == [ROWS[1]]
    with pytest.raises(RequestError, match=r"rows\.\w+ has no rows of split 'dev': choose one of test, train, or all"):
        read_rows(data, None, "dev")


@pytest.mark.parametrize(
    "make, where",
    [(as_lines, ("line 1", "line 3", "line 4")), (as_array, ("entry 1", "entry 2", "entry 3"))],
)
def test_rows_say_where_they_stand(make, where, tmp_path):
    data = make(tmp_path)
    rows = read_rows(data, None, ALL)
    assert [row.where for row in rows] == [f"{data}, {place}" for place in where]
    assert [row.default_id for row in rows] == [f"rows/{place.split()[1]}" for place in where]
    assert [row.default_id for row in read_rows(data, None, "test")] == [rows[1].default_id]  # not renumbered


def test_a_file_without_splits_is_the_split_that_is_asked_for(tmp_path):
    data = write(tmp_path, "rows.jsonl", '{"n": 1}', '{"n": 2}')
    for split in ("train", "test", ALL):
        assert fields(read_rows(data, None, split)) == [{"n": 1}, {"n": 2}]


def test_windows_files_and_odd_ends_of_lines(tmp_path):
    data = write(tmp_path, "rows.jsonl", b'\xef\xbb\xbf{"n": "a"}\r', '{"n": "W\u00f6rld\u2028?"}\r', b"")
    assert fields(read_rows(data, None, ALL)) == [{"n": "a"}, {"n": "W\u00f6rld\u2028?"}]


GOOD = '{"n": 1}'
MALFORMED = {
    "empty": ("f.jsonl", [""], "f.jsonl holds no rows; write one JSON object a line"),
    "blank": ("f.jsonl", ["", "  ", ""], "f.jsonl holds no rows"),
    "empty array": ("f.json", ["[]"], "f.json holds no rows"),
    "torn": ("f.jsonl", [GOOD, '{"n": '], "f.jsonl, line 2: not JSON"),
    "words": ("f.jsonl", [GOOD, "", "hello"], "f.jsonl, line 3: not JSON"),
    "too deep": ("f.jsonl", ["[" * 100_000], "f.jsonl, line 1: not JSON"),
    "too long a number": ("f.jsonl", ["9" * 5000], "f.jsonl, line 1: not JSON"),
    "a list": ("f.jsonl", [GOOD, "[1, 2]"], "f.jsonl, line 2: not a JSON object"),
    "numbers": ("f.json", ["[1, 2]"], "f.json, entry 1: not a JSON object"),
    "a number among objects": ("f.json", [f"[{GOOD},", "2]"], "f.json, entry 2: not a JSON object"),
    "torn array": ("f.json", [f"[{GOOD},"], "f.json: not JSON"),
    "not UTF-8": ("f.jsonl", [GOOD, b'{"n": "\xff"}'], "f.jsonl, line 2: not UTF-8"),
    "no parquet": ("f.parquet", [GOOD], "cannot read "),
}


def refusal(data, hub=None, split=ALL):
    """The one line that reading it raises."""
    with pytest.raises(RequestError) as caught:
        read_rows(data, hub, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, lines, said", MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_say_where_and_what_to_do(name, lines, said, tmp_path):
    data = write(tmp_path, name, *lines)
    message = refusal(data)
    assert said in message
    assert data in message


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    cure = "name a JSON Lines, JSON or Parquet file, or a hub id"
    for missing in ("none.jsonl", "runs/none.jsonl", "runs/none.parquet", "none", str(tmp_path / "none")):
        assert refusal(missing) == f"cannot read {missing} (No such file or directory); {cure}"
    assert refusal(str(tmp_path)) == f"cannot read {tmp_path} (Is a directory); {cure}"
    assert refusal(None) == "this task has no data of its own: give --data FILE"


# The hub


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """`owner/name` as `datasets` finds it: two splits in a folder of that name, read by the package itself."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder, "train.jsonl", '{"n": 1}', '{"n": 2}')
    write(folder, "test.jsonl", '{"n": 3}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return HubDataset("owner/name", splits=("train", "test"))


def test_rows_of_the_hub(on_hub):
    assert fields(read_rows(None, on_hub, "train")) == [{"n": 1}, {"n": 2}]
    rows = read_rows(None, on_hub, ALL)
    assert sorted((row.fields["n"], row.where, row.default_id) for row in rows) == [
        (1, "owner/name, train row 0", "name/train/0"),
        (2, "owner/name, train row 1", "name/train/1"),
        (3, "owner/name, test row 0", "name/test/0"),
    ]
    assert read_rows(None, on_hub, "test") == [row for row in rows if "test" in row.where]
    assert refusal(None, on_hub, "dev") == "owner/name has no split 'dev': choose one of train, test"


def test_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load(repo_id, config_name, revision):
        asked.append((repo_id, config_name, revision))
        return {"test": [{"n": 1}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = HubDataset("owner/name", "main")
    for data in (None, "owner/name", "owner/name@v1.0", "another/name@refs/pr/2"):
        assert fields(read_rows(data, hub, "test")) == [{"n": 1}]
    assert asked == [
        ("owner/name", "main", None),
        ("owner/name", "main", None),
        ("owner/name", "main", "v1.0"),
        ("another/name", None, "refs/pr/2"),
    ]
    assert refusal("another/name", hub, "dev") == "another/name has no split 'dev': choose one of test, or all"


def test_a_hub_that_cannot_be_reached_names_the_way_round(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for data, hub in (("nobody/nothing", None), (None, HubDataset("nobody/nothing", "main"))):
        message = refusal(data, hub, "test")
        assert message.startswith("data nobody/nothing cannot be had from the hub (")
        assert message.endswith("; give --data FILE")

"""Several processes roll out into one folder: the rows are one process's, whoever did what and whoever was killed."""

import errno
import multiprocessing
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trajectories import META, ROWS, SLICES, open_writer, write_slices

from t3d.cli import run
from t3d.errors import RequestError, WorkError
from t3d.trajectories import WHOLE, Part, TrajectoryWriter, read, state_of
from t3d.trajectories.parts import rank_of, use_own_gpu

# Parts


@given(count=st.integers(1, 9), inner=st.integers(1, 5), num_shards=st.integers(0, 60))
def test_parts_of_parts_share_the_shards_out(count, inner, num_shards):
    parts = [Part(i, count).split(Part(j, inner)) for i in range(count) for j in range(inner)]
    assert sorted(index for part in parts for index in part.of(num_shards)) == list(range(num_shards))
    sizes = [len(part.of(num_shards)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        outer = Part(part.index % count, count)
        assert set(part.of(num_shards)) <= set(outer.of(num_shards))


def test_parts_are_numbered_from_0():
    assert list(Part.parse("1/3").of(8)) == [1, 4, 7]
    assert Part.parse(str(Part(2, 5))) == Part(2, 5)
    assert rank_of({"RANK": "3", "WORLD_SIZE": "4"}) == Part(3, 4)
    assert rank_of({}) == WHOLE
    for wrong, named in (("8/8", "numbered from 0"), ("0/0", "does not exist"), ("1", "i/n"), ("-1/4", "i/n")):
        with pytest.raises(RequestError, match=named):
            Part.parse(wrong)


# Folders


def part_writer(folder, text, resume=False):
    return TrajectoryWriter(folder, META, "f00d", len(SLICES), resume, Part.parse(text))


def test_parts_join_a_folder_and_lose_nothing_of_each_other(tmp_path):
    writers = [part_writer(tmp_path, text) for text in ("0/3", "1/3", "2/3")]
    assert [writer.missing for writer in writers] == [[0, 3], [1], [2]]
    for writer in reversed(writers):
        write_slices(writer, writer.missing)
    assert list(read(tmp_path)) == ROWS
    assert (state_of(tmp_path).is_complete, state_of(tmp_path).num_rows) == (True, len(ROWS))
    with pytest.raises(ValueError, match="none of part 1/3"):
        part_writer(tmp_path, "1/3", resume=True).write_shard(0, SLICES[0])


def test_a_part_wants_resume_where_it_has_been(tmp_path):
    write_slices(part_writer(tmp_path, "0/2"), [2])
    part_writer(tmp_path, "1/2")
    with pytest.raises(RequestError, match=r"part 0/2 of this rollout already, 1 of 2 shards finished; add --resume"):
        part_writer(tmp_path, "0/2")
    with pytest.raises(RequestError, match="part 2/4 of this rollout already, 1 of 1"):  # another number of parts
        part_writer(tmp_path, "2/4")
    with pytest.raises(RequestError, match="this rollout already, 1 of 4"):
        open_writer(tmp_path)
    assert part_writer(tmp_path, "0/2", resume=True).missing == [0]
    assert open_writer(tmp_path, resume=True).missing == [0, 1, 3]  # nor need the rest be done in parts


def test_a_part_does_not_join_another_rollout(tmp_path):
    write_slices(part_writer(tmp_path, "0/2"), [0])
    with pytest.raises(RequestError, match="seed 0, not 9"):
        TrajectoryWriter(tmp_path, replace(META, seed=9), "f00d", len(SLICES), part=Part(1, 2))


def with_other_bits(rows, confidence):
    """As on another kind of GPU."""
    return [replace(row, confidence=[confidence] * len(row.confidence)) for row in rows]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_two_that_write_the_same_shard_leave_it_whole_at_every_moment(tmp_path, monkeypatch, renames):
    """The second one, which began before the first was done, is killed before its record, before its file, or later."""
    writers = [open_writer(tmp_path), open_writer(tmp_path, resume=True)]
    writers[0].write_shard(0, SLICES[0])
    others = with_other_bits(SLICES[0], 0.25)
    left, real_replace = iter(range(renames)), os.replace

    def replace_or_die(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real_replace(source, target)

    monkeypatch.setattr("os.replace", replace_or_die)
    with nullcontext() if renames == 2 else pytest.raises(KeyboardInterrupt):
        writers[1].write_shard(0, others)
    assert list(read(tmp_path, allow_partial=True)) == (others if renames == 2 else SLICES[0])
    assert open_writer(tmp_path, resume=True).finished == {0}


def write_everything_often(folder, confidence, enough):
    """All shards again and again, as if each time another process did so."""
    while not enough.is_set():
        writer = open_writer(folder, resume=True)
        writer._finished.clear()
        for index in writer.missing:
            writer.write_shard(index, with_other_bits(SLICES[index], confidence))


def test_a_reader_never_finds_a_shard_damaged_while_two_processes_write_it(tmp_path):
    open_writer(tmp_path)
    fork = multiprocessing.get_context("fork")
    enough = fork.Event()
    writers = [fork.Process(target=write_everything_often, args=(tmp_path, value, enough)) for value in (0.5, 0.25)]
    for writer in writers:
        writer.start()
    try:
        num_reads = 0
        while num_reads < 25:
            assert all(writer.is_alive() for writer in writers)
            rows = list(read(tmp_path, allow_partial=True))
            assert {row.confidence[0] for row in rows} <= {0.5, 0.25}
            num_reads += len(rows) == len(ROWS)
    finally:
        enough.set()
        for writer in writers:
            writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert with_other_bits(read(tmp_path), 0.5) == ROWS
    assert not list(tmp_path.glob(".t3d-tmp-*"))


def test_a_folder_that_another_part_began_is_found_however_late_the_file_system_says_so(tmp_path, monkeypatch):
    write_slices(part_writer(tmp_path, "0/2"), [0])
    monkeypatch.setattr("pathlib.Path.exists", lambda path: path == tmp_path)  # as remembered, whereas it lists it
    assert part_writer(tmp_path, "1/2").missing == [1, 3]


def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch):
    """Some network file systems refuse; a disk that fails is another matter."""
    refusal, real_fsync = [errno.EINVAL], os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refusal[0], os.strerror(refusal[0]))
        real_fsync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_slices(open_writer(tmp_path), range(len(SLICES)))
    assert list(read(tmp_path)) == ROWS
    refusal[0] = errno.EIO
    with pytest.raises(WorkError, match="cannot write"):
        open_writer(tmp_path / "other")


# Commands


def words(model, out, *more):
    common = f"rollout --model {model} --task story --limit 20 --rows-per-shard 3 --device cpu --max-new-tokens 16"
    return [*common.split(), "--temperature", "1.0", "--seed", "3", "--out", str(out), *more]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(model_folder, tmp_path_factory):
    """What one process writes: seven shards."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(words(model_folder, folder)) == 0
    return folder


def test_shards_of_a_job_array_are_one_rollout(model_folder, whole, tmp_path, capsys):
    out = tmp_path / "out"
    for number, finished in ((2, 2), (0, 5)):
        assert run(words(model_folder, out, "--shard", f"{number}/3")) == 0
        assert f"part {number}/3: " in (said := capsys.readouterr().out)
        assert f"; {finished} of 7 shards are finished" in said
    assert run(words(model_folder, out, "--shard", "0/3")) == 2  # not by accident
    assert run(words(model_folder, out, "--shard", "0/3", "--resume")) == 0
    assert "0 answers" in capsys.readouterr().out
    assert run(words(model_folder, out, "--shard", "1/3")) == 0
    assert "; all 7 shards are finished, 20 answers" in capsys.readouterr().out
    assert contents(out) == contents(whole)


def test_a_rank_of_torchrun_takes_its_share_of_a_part(model_folder, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        for array_task in ("0/2", "1/2"):
            assert run(words(model_folder, tmp_path / "out", "--shard", array_task)) == 0
    said = [line.split(" ")[1:3] for line in capsys.readouterr().out.splitlines()]
    assert said == [["part", f"{part}/4:"] for part in (2, 3, 0, 1)]
    assert contents(tmp_path / "out") == contents(whole)


def test_more_parts_than_shards_leave_some_with_nothing_and_say_so(model_folder, tmp_path, capsys, caplog):
    assert run(words(model_folder, tmp_path / "out", "--shard", "9/12")) == 0
    assert "nothing to do; 0 of 7 shards" in capsys.readouterr().out
    assert "5 of 12 engines have nothing to do: there are only 7 shards; --rows-per-shard 1," in caplog.text
    caplog.clear()
    assert run(words(model_folder, tmp_path / "out", "--shard", "6/7")) == 0
    assert "nothing to do" not in caplog.text


def test_a_process_takes_the_gpu_of_its_local_rank_unless_it_is_to_use_the_cpu(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for rank in ("0", "1"):
        use_own_gpu({"LOCAL_RANK": rank}, None)
    assert chosen == [1]  # 0 is what "cuda" means anyway
    with pytest.raises(RequestError, match="there are 2 GPUs: start one process a GPU"):
        use_own_gpu({"LOCAL_RANK": "2"}, "cuda")
    use_own_gpu({"LOCAL_RANK": "1"}, "cpu")
    use_own_gpu({"LOCAL_RANK": "7"}, "cpu")
    assert chosen == [1]


WRONG = {
    "--shard 7": "--shard '7': write i/n",
    "--shard 4/4": "numbered from 0",
    "--workers slurm": "--workers 'slurm' is unknown: use ray",
    "--num-workers 2": "add --workers ray",
    "--address auto": "add --workers ray",
    "--cpus-per-worker 2": "add --workers ray",
    "--workers ray --shard 0/2": "leave out --shard",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_requests_are_one_line(model_folder, tmp_path, capsys, options):
    assert run(words(model_folder, tmp_path / "out", *options.split())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert WRONG[options] in line
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_named(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(words(model_folder, tmp_path / "out", "--workers", "ray")) == 2
    assert capsys.readouterr().err == "t3d: --workers ray needs Ray: pip install 't3d[ray]'\n"


@pytest.mark.slow
def test_torchrun_starts_it(model_folder, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "t3d.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("RANK", "WORLD_SIZE")}
    ran = subprocess.run(
        [*command, *words(model_folder, tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "part 0/2: " in ran.stdout
    assert "part 1/2: " in ran.stdout
    assert "all 7 shards are finished, 20 answers" in ran.stdout
    assert contents(tmp_path / "out") == contents(whole)

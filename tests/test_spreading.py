"""Several processes roll out into one folder: the rows are one process's, whoever did what and whoever was killed."""

import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trajectories import META, ROWS, SLICES, open_writer, write_slices

from t3d.cli import run
from t3d.errors import RequestError, WorkError
from t3d.trajectories import WHOLE, Part, TrajectoryWriter, read, state_of
from t3d.trajectories.parts import rank_of
from t3d.trajectories.workers import dealing
from t3d.trajectories.workers.dealing import Dealer, Done, Lost, Ready

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


def write_everything_often(folder, confidence):
    """All shards again and again, as if each time another process did so."""
    for _ in range(10):
        writer = open_writer(folder, resume=True)
        writer._finished.clear()
        for index in writer.missing:
            writer.write_shard(index, with_other_bits(SLICES[index], confidence))


def test_a_reader_never_finds_a_shard_damaged_while_two_processes_write_it(tmp_path):
    open_writer(tmp_path)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_everything_often, args=(tmp_path, value)) for value in (0.5, 0.25)]
    for writer in writers:
        writer.start()
    num_reads = 0
    while any(writer.is_alive() for writer in writers):
        rows = list(read(tmp_path, allow_partial=True))
        assert {row.confidence[0] for row in rows} <= {0.5, 0.25}
        num_reads += len(rows) == len(ROWS)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert num_reads > 3
    assert with_other_bits(read(tmp_path), 0.5) == ROWS
    assert not list(tmp_path.glob(".t3d-tmp-*"))


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


def test_more_parts_than_shards_leave_some_with_nothing(model_folder, tmp_path, capsys):
    assert run(words(model_folder, tmp_path / "out", "--shard", "9/12")) == 0
    assert "nothing to do; 0 of 7 shards" in capsys.readouterr().out


WRONG = {
    "--shard 7": "--shard '7': write i/n",
    "--shard 4/4": "numbered from 0",
    "--workers slurm": "--workers 'slurm' is unknown: use ray",
    "--num-workers 2": "add --workers ray",
    "--address auto": "add --workers ray",
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
        [*command, *words(model_folder, tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    assert "part 0/2: " in ran.stdout
    assert "part 1/2: " in ran.stdout
    assert "all 7 shards are finished, 20 answers" in ran.stdout
    assert contents(tmp_path / "out") == contents(whole)


# Dealing


class FakeCrew:
    """Workers that are ready, finish and are lost as a list of numbers says; a shard's result is its number."""

    def __init__(self, choices, kills=lambda shard: False):
        self.choices, self.kills = iter(choices), kills
        self.starting, self.hands = [], {}
        self.hired = self.lost = 0
        self.given = Counter()

    def hire(self):
        self.hired += 1
        self.starting.append(self.hired)
        return self.hired

    def give(self, worker, shard):
        assert worker not in self.hands
        self.hands[worker] = shard
        self.given[shard] += 1

    def wait(self, seconds):
        choice = next(self.choices, 1)
        candidates = [*self.starting, *self.hands]
        if not candidates:
            return None
        worker = candidates[choice // 2 % len(candidates)]
        if worker in self.starting:
            self.starting.remove(worker)
            return Ready(worker, "hello")
        shard = self.hands.pop(worker)
        if self.kills(shard) or choice % 2 == 0:
            self.lost += 1
            return Lost(worker, "killed")
        return Done(worker, shard)


@settings(max_examples=200, deadline=None)
@given(choices=st.lists(st.integers(0, 40), max_size=60), workers=st.integers(1, 5), num_shards=st.integers(0, 12))
def test_every_shard_is_done_once_or_given_up_after_three_losses(choices, workers, num_shards):
    crew, done, refusal = FakeCrew(choices), [], ""
    dealer = Dealer(crew, workers)
    assert dealer.first_greeting() == "hello"
    try:
        done.extend(dealer.deal(range(num_shards)))
    except WorkError as error:
        refusal = str(error)
    given_up = {shard for shard, times in crew.given.items() if times == 3 and (shard, shard) not in done}
    assert all(f"shard {shard} (killed)" in refusal for shard in given_up)
    assert refusal.count("shard ") == len(given_up)
    assert sorted(shard for shard, _ in done) == [shard for shard in range(num_shards) if shard not in given_up]
    assert all(shard == result for shard, result in done)
    assert sum(crew.given.values()) == len(done) + crew.lost
    assert max(crew.given.values(), default=0) <= 3
    assert crew.hired <= workers + crew.lost


def test_a_shard_that_kills_its_workers_costs_nothing_else(caplog):
    crew = FakeCrew([], kills=lambda shard: shard == 2)
    dealer = Dealer(crew, 1)
    dealer.first_greeting()
    done = []
    with pytest.raises(WorkError, match=r"3 workers each were lost with shard 2 \(killed\): given up"):
        done.extend(shard for shard, _ in dealer.deal(range(5)))
    assert done == [0, 1, 3, 4]
    fates = [record.getMessage().split("; ")[1] for record in caplog.records]
    assert fates == ["shard 2 will be redone"] * 2 + ["shard 2 is given up: 3 workers were lost with it"]


class StillbornCrew(FakeCrew):
    """Workers that die while they start."""

    def wait(self, seconds):
        return Lost(self.starting.pop(), "no memory")


def test_workers_that_cannot_start_are_not_started_for_ever(caplog):
    crew = StillbornCrew([])
    with pytest.raises(WorkError, match="no worker is left: no memory"):
        Dealer(crew, 2).first_greeting()
    assert crew.hired == 2 + 2 * dealing.RESTARTS_PER_WORKER
    assert caplog.records[-1].getMessage().endswith("no other is started: too many were lost in a row")


class SilentCrew(FakeCrew):
    """A cluster without room."""

    def wait(self, seconds):
        assert seconds == dealing.PATIENCE_SECONDS


def test_a_cluster_without_room_is_not_waited_for_for_ever():
    with pytest.raises(WorkError, match="no worker was ready within 600 s"):
        Dealer(SilentCrew([]), 2).first_greeting()

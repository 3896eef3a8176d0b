"""A disk that is full, or may not be written, at each write in turn: one line, exit code 1, and a resume that ends."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from study_runs import Inline, comparable, study_fields
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_failures import eval_words, largest_file, last_line, rollout_words

from t3d import demo
from t3d.checksums import damage_of_folder
from t3d.cli import run
from t3d.config import TrackingConfig
from t3d.evaluation import read_result
from t3d.evaluation.report import ResultTable
from t3d.study import run as study_run
from t3d.study.rows import read_rows
from t3d.training.run.interrupts import Interrupts
from t3d.training.run.tracking import Trackers
from t3d.trajectories import read

HAVE_TESTS = {
    *(".manifest.json", ".shard-record", "shard-00000.parquet"),
    *("recipe.json", "recipe.yaml", "starts.jsonl", "metrics.jsonl", "checksums.json", "outcome.json"),
    *(f"step-{step:06d}" for step in (1, 2, 3)),
}
"""Files of a rollout or training; pictures and tables are those of `t3d study-report`."""
LEFTOVERS = (".t3d-tmp-*", "*.partial", ".*.partial")


def train_words(model_folder, out):
    """Two steps with a checkpoint and an evaluation after each, the best student and moments."""
    fields = {
        "model": {"source": str(model_folder)},
        "objective": {"name": "trajectory_ce"},
        "data": {"trajectories": str(out.parent / "rows"), "keep_unfinished": True},
        "optim": {"steps": 2, "examples_per_step": 4, "warmup_steps": 0, "keep_moments": True},
        "evaluation": {"benchmark": "story", "every_steps": 1, "limit": 2, "tokens_per_step": [4], "max_new_tokens": 4},
        "checkpoint": {"every_steps": 1},
        "device": "cpu",
        "out": str(out),
    }
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(fields))
    return ["train", str(file)]


def found_by_rollout(out):
    return list(read(out))


def found_by_training(out):
    return {key: tensor.tolist() for key, tensor in load_file(out / "model" / "model.safetensors").items()}


def found_by_evaluation(out):
    lines = (out / "answers.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


RESUMED = {
    "rollout": (rollout_words, found_by_rollout),
    "train": (train_words, found_by_training),
    "eval": (eval_words, found_by_evaluation),
}


@pytest.fixture
def appearing(monkeypatch):
    """Call it with a name (None: all is well) and an error's number; yields the names of files that appeared."""
    replace, names = os.replace, []

    def watch(refused=None, code=errno.ENOSPC):
        names.clear()

        def full(source, target, **kwargs):
            name = kind_of(os.path.basename(target))
            names.append(name)
            if name == refused:
                raise OSError(code, os.strerror(code), str(target))
            replace(source, target, **kwargs)

        monkeypatch.setattr(os, "replace", full)
        return names

    return watch


def kind_of(name):
    """Shards' records have checksums in their names."""
    return ".shard-record" if name.startswith(".shard-") else name


@pytest.mark.parametrize("command", RESUMED)
def test_no_file_may_appear(command, model_folder, trajectory_folder, tmp_path, appearing, capfd):
    words, found = RESUMED[command]
    (tmp_path / "rows").symlink_to(trajectory_folder)
    names = appearing()
    assert run(words(model_folder, tmp_path / "whole")) == 0
    expected, kinds = found(tmp_path / "whole"), list(dict.fromkeys(names))
    assert len(kinds) >= 3
    for number, name in enumerate(kinds):
        capfd.readouterr()
        out = tmp_path / f"out-{number}"
        code = (errno.ENOSPC, errno.EROFS)[number % 2]
        appearing(name, code)
        assert run(words(model_folder, out)) == 1, name
        line = last_line(capfd)
        assert os.strerror(code) in line, (name, line)
        assert str(out) in line, (name, line)
        assert [file for each in LEFTOVERS for file in out.rglob(each)] == [], name
        appearing()
        assert run([*words(model_folder, out), "--resume"]) == 0, name
        assert found(out) == expected, name


@pytest.fixture
def unkept(monkeypatch, tmp_path):
    """Call it with a part of a path: such files the disk took and will not keep, as at a quota over a network."""
    fsync = os.fsync

    def watch(place):
        refused = []

        def full(descriptor):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if f"{tmp_path}/out/" in path and place is not None and place in path:
                refused.append(path)
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        return refused

    return watch


def test_what_the_disk_took_and_will_not_keep(model_folder, trajectory_folder, tmp_path, unkept, capfd):
    (tmp_path / "rows").symlink_to(trajectory_folder)
    assert run(train_words(model_folder, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    asked = train_words(model_folder, out)
    for place in ("/.best.partial/", "/model/model.safetensors", ".moments.pt.partial", "step-000002.partial/"):
        capfd.readouterr()
        refused = unkept(place)
        assert run([*asked, "--resume"]) == 1
        assert refused
        line = last_line(capfd)
        assert "quota exceeded" in line
        assert f"{out}/" in line
        assert [file for each in LEFTOVERS for file in out.rglob(each)] == []
        if place.startswith("/model/"):
            assert damage_of_folder(out / "model") == "it was not written to its end"
        if place != "step-000002.partial/":  # which is written behind the run
            assert not (out / "outcome.json").exists()
            shutil.rmtree(out / "checkpoints" / "step-000002", ignore_errors=True)
    unkept(None)
    assert run([*asked, "--resume"]) == 0
    assert found_by_training(out) == found_by_training(tmp_path / "whole")


@pytest.fixture
def in_this_process(monkeypatch):
    """`t3d study` without processes."""

    @contextlib.contextmanager
    def make(*_):
        yield Inline()

    monkeypatch.setattr(study_run, "Pool", make)


def test_a_study_of_which_no_file_may_appear(in_this_process, model_folder, tmp_path, appearing, capfd):
    fields = study_fields(model_folder, "")
    fields |= {"seeds": [0], "learning_rates": [1e-3], "ablations": {}, "claims": [], "equal_time": None}
    fields["methods"] = {"plain": fields["methods"]["plain"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(fields))

    def words(out):
        return ["study", str(tmp_path / "study.yaml"), f"out={out}"]

    appeared, out = appearing(), tmp_path / "out"
    assert run(words(tmp_path / "whole")) == 0
    names = list(appeared)  # which begins anew
    own = [name for name in dict.fromkeys(names) if name not in HAVE_TESTS and not name.endswith((".png", ".csv"))]
    assert {"study.json", "rows.json", "seed-0.json", "cell.json", "result.json", "report.md"} <= set(own)
    for name in own:  # one after another as the study comes to them
        capfd.readouterr()
        appearing(name, errno.EROFS)
        assert run([*words(out), *(["--resume"] if (out / "study.json").exists() else [])]) == 1, name
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith("t3d: "), name
        assert "Read-only file system" in line, (name, line)
        assert str(out) in line, (name, line)
        assert [file for each in LEFTOVERS for file in out.rglob(each)] == [], name
    appearing()
    assert run([*words(out), "--resume"]) == 0, name
    assert comparable(read_rows(out)) == comparable(read_rows(tmp_path / "whole"))
    for name in ("report.md", next(name for name in reversed(names) if name.endswith(".csv"))):
        capfd.readouterr()
        appearing(name)
        assert run(["study-report", str(out), "--out", str(tmp_path / "report")]) == 1
        assert f"{tmp_path}/report: No space left" in last_line(capfd)
        assert not (tmp_path / "report" / name).exists()


def compare_words(result, out):
    return ["compare", str(result), "--out", str(out)]


def bench_rollout_words(result, out):
    words = "bench rollout --shape tiny --device cpu --prompt-tokens 8 --new-tokens 8 --repeats 1 --concurrency 1"
    return [*words.split(), "--out", str(out / "result.json")]


def bench_train_words(result, out):
    words = "bench train --shape tiny --lengths real --device cpu --examples 1 --steps 1 --warm-up 0 --block-size 4"
    return [*words.split(), "--tokens-per-batch", "1024", "--out", str(out / "result.json")]


def doctor_words(result, out):
    out.mkdir(exist_ok=True)
    return ["doctor", "--json", str(out / "machine.json")]


def demo_words(result, out):
    return ["demo", "--out", str(out)]


@pytest.fixture(scope="module")
def result(model_folder, tmp_path_factory):
    """Of an evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    assert run(eval_words(model_folder, folder)) == 0
    return folder / "result.json"


@pytest.fixture
def told(result, monkeypatch):
    """A demo whose models have answered already: what it writes beside its rounds."""
    rounds = ResultTable(name="rounds", title="", columns=[], groups=[[]], notes=[], records=[])
    monkeypatch.setattr(demo, "run_demo", lambda out, seed: demo._write_report(out, [read_result(result)], rounds))


ONCE = [compare_words, bench_rollout_words, bench_train_words, doctor_words, demo_words]


@pytest.mark.parametrize("words", ONCE)
def test_no_file_of_a_command_that_is_done_at_once_may_appear(words, told, result, tmp_path, appearing, capfd):
    asked, appeared = words(result, tmp_path / "whole"), appearing()
    assert run(asked) == 0
    names = list(appeared)  # which begins anew
    assert names
    for number, name in enumerate(dict.fromkeys([names[0], names[len(names) // 2], names[-1]])):
        capfd.readouterr()
        out = tmp_path / f"out-{number}"
        appearing(name, errno.EROFS)
        assert run(words(result, out)) == 1, name
        line = last_line(capfd)
        assert "Read-only file system" in line, (name, line)
        assert str(out) in line, (name, line)
        assert [file for each in LEFTOVERS for file in out.rglob(each)] == [], name


def convert_words(model_folder, tmp_path, out):
    from transformers import LlamaConfig, LlamaForCausalLM

    from t3d.models import load_tokenizer

    tokenizer = load_tokenizer("story-tokenizer")
    shapes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shapes)).save_pretrained(tmp_path / "ar")
    tokenizer.save_pretrained(tmp_path / "ar")
    return ["convert", "--from-ar", str(tmp_path / "ar"), "--out", str(out)]


def view_words(model_folder, tmp_path, out):
    return ["view", str(tmp_path / "rows"), "--tokenizer", "story-tokenizer", "--out", f"{out}.html"]


@pytest.mark.parametrize("words", [convert_words, view_words])
@pytest.mark.parametrize("num_bytes", [0, 500])
def test_no_file_may_grow(words, num_bytes, model_folder, trajectory_folder, tmp_path, capsys):
    (tmp_path / "rows").symlink_to(trajectory_folder)
    asked = words(model_folder, tmp_path, tmp_path / "out")
    capsys.readouterr()
    with largest_file(num_bytes):
        assert run(asked) == 1
    line = last_line(capsys)
    assert "too large" in line
    assert str(tmp_path / "out") in line
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("num_written", [0, 1, 2])
def test_tensorboard_that_cannot_write_is_left_out_in_one_line(num_written, tmp_path, caplog, capfd):
    trackers = None
    with caplog.at_level(logging.WARNING):
        if num_written:
            trackers = Trackers(TrackingConfig(), tmp_path, {}, 0)
        for step in range(num_written):
            trackers.log(step, {"loss": 1.0})
        full = sum(file.stat().st_size for file in tmp_path.rglob("*tfevents*")) + 10
        with largest_file(full):
            trackers = trackers or Trackers(TrackingConfig(), tmp_path, {}, 0)
            trackers.log(num_written, {"loss": 1.0})
            (record,) = caplog.records  # at once: a run may end before another step
            trackers.log(num_written + 1, {"loss": 1.0})
        trackers.log(num_written + 2, {"loss": 1.0})  # as room came too late
        trackers.close()
    assert caplog.records == [record]
    assert record.getMessage().startswith("tracking.to tensorboard: its records are incomplete: [Errno 27]")
    assert capfd.readouterr().err == ""
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = [event.step for name in board.Tags()["scalars"] for event in board.Scalars(name)]
    assert found == list(range(num_written))


# --- what is printed ---


def streams(words, **options):
    """A real process: Python's own end has a say in its exit code."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # as it is started by others
    return subprocess.run([sys.executable, "-m", "t3d.cli", *words], env=environment, **options)


@pytest.fixture
def full():
    """A file that takes nothing."""
    with contextlib.suppress(OSError), open("/dev/full", "w") as stream:
        yield stream


def test_output_that_nothing_takes_is_a_failure_in_one_line(full):
    done = streams(["--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "t3d: standard output: No space left on device; what is in files is whole\n"


def test_output_whose_reader_has_gone_is_no_news():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = streams(["--version"], stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_exit_codes_do_not_hang_on_where_errors_go(stderr):
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHON": sys.executable}
    done = subprocess.run(f'"$PYTHON" -m t3d.cli train nowhere.yaml {stderr}', shell=True, env=environment)
    assert done.returncode == 2


@pytest.mark.parametrize("command", RESUMED)
def test_a_log_on_a_full_disk_costs_no_work(command, full, model_folder, trajectory_folder, tmp_path, monkeypatch):
    words, found = RESUMED[command]
    (tmp_path / "rows").symlink_to(trajectory_folder)
    assert run(words(model_folder, tmp_path / "whole")) == 0
    monkeypatch.setattr(sys, "stderr", full)
    assert run(words(model_folder, tmp_path / "out")) == 0
    assert found(tmp_path / "out") == found(tmp_path / "whole")


def test_a_run_is_asked_to_stop_though_its_log_is_full(full):
    interrupts, stderr = Interrupts(), os.dup(2)
    os.dup2(full.fileno(), 2)
    try:
        interrupts(signal.SIGTERM, None)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    assert interrupts.asked

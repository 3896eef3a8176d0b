"""Work that fails: exit code 1 (or 130 after Ctrl-C), one line that says why, and what was finished stays usable."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from t3d.cli import run
from t3d.engine import Engine
from t3d.training.run.checkpoint import Checkpoints
from t3d.training.run.folder import RunFolder
from t3d.trajectories import read


def rollout_words(model_folder, out, *more):
    """Three shards of eight answers."""
    words = f"rollout --model {model_folder} --out {out} --task story --limit 24 --rows-per-shard 8 --device cpu"
    return [*words.split(), "--max-new-tokens", "8", "--temperature", "1.0", *more]


def eval_words(model_folder, out, *more):
    words = f"eval --model {model_folder} --out {out} --limit 2 --tokens-per-step 4 --max-new-tokens 8 --device cpu"
    return [*words.split(), "--threshold", "", *more]


@pytest.fixture
def recipe(tmp_path, model_folder, trajectory_folder):
    """Two steps with a checkpoint after each."""
    fields = {
        "model": {"source": str(model_folder)},
        "objective": {"name": "trajectory_ce"},
        "data": {"trajectories": str(trajectory_folder), "keep_unfinished": True},
        "optim": {"steps": 2, "examples_per_step": 4, "warmup_steps": 0},
        "checkpoint": {"every_steps": 1},
        "device": "cpu",
        "out": str(tmp_path / "run"),
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


def last_line(capfd):
    """What stderr ends in, after lines of progress; there is one complaint at most."""
    lines = capfd.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    assert [line for line in lines if line.startswith("t3d: ")] == lines[-1:]
    return lines[-1]


def refuse(monkeypatch, suffix, code=errno.ENOSPC):
    """From now on the disk refuses to let a file of that name appear."""
    replace = os.replace

    def full(source, target, **kwargs):
        if str(target).endswith(suffix):
            raise OSError(code, os.strerror(code), str(target))
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)


@contextlib.contextmanager
def largest_file(num_bytes):
    """The operating system itself refuses to write longer files (ulimit -f)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_rollout_on_a_full_or_read_only_disk(code, model_folder, tmp_path, monkeypatch, capfd):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(rollout_words(model_folder, whole)) == 0
    capfd.readouterr()
    with monkeypatch.context() as patch:
        refuse(patch, "shard-00001.parquet", code)
        assert run(rollout_words(model_folder, out)) == 1
    line = last_line(capfd)
    assert os.strerror(code) in line
    assert "shard-00001.parquet" in line
    assert list(read(out, allow_partial=True)) == list(read(whole))[:8]
    assert run(rollout_words(model_folder, out, "--resume")) == 0
    assert list(read(out)) == list(read(whole))


def test_rollout_where_no_folder_can_be_made(model_folder, tmp_path, capfd):
    (tmp_path / "file").write_text("kept")
    assert run(rollout_words(model_folder, tmp_path / "file" / "out")) == 1
    assert f"{tmp_path}/file/out: Not a directory" in last_line(capfd)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("num_bytes", [0, 30_000])  # the first write fails; the weights' write fails inside safetensors
def test_checkpoint_on_a_full_disk(num_bytes, recipe, tmp_path, monkeypatch, capsys):
    write = Checkpoints.write

    def full_at_the_second(self, step, *args):
        with largest_file(num_bytes) if step == 2 else contextlib.nullcontext():
            write(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", full_at_the_second)
        # In the foreground, as the limit holds for all that the process writes meanwhile.
        assert run(["train", str(recipe), "checkpoint.asynchronous=false"]) == 1
    line = last_line(capsys)
    assert "checkpoints/step-000002: " in line
    assert "too large" in line
    assert "--resume" in line
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    assert run(["train", str(recipe), "--resume"]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_final_model_on_a_full_disk(recipe, tmp_path, monkeypatch, capsys):
    import t3d.training.student as student

    save = student.save_model

    def full(*args, **options):
        with largest_file(30_000):
            save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(student, "save_model", full)
        assert run(["train", str(recipe)]) == 1
    assert f"model {tmp_path}/run/model: cannot be written" in last_line(capsys)
    assert run(["train", str(recipe), "--resume"]) == 0


def test_files_of_a_run_survive_a_full_disk(recipe, tmp_path, monkeypatch, capsys):
    assert run(["train", str(recipe)]) == 0
    files = [tmp_path / "run" / name for name in ("recipe.json", "recipe.yaml", "starts.jsonl", "metrics.jsonl")]
    stored = [file.read_bytes() for file in files]
    capsys.readouterr()
    with largest_file(10):
        assert run(["train", str(recipe), "--resume"]) == 1
    assert f"out {tmp_path}/run: File too large" in last_line(capsys)
    with monkeypatch.context() as patch, largest_file(10):
        patch.setattr(RunFolder, "open", lambda _, **__: None)  # so that the metrics are the first to be written
        assert run(["train", str(recipe), "--resume"]) == 1
    assert "File too large" in last_line(capsys)
    assert [file.read_bytes() for file in files] == stored
    assert run(["train", str(recipe), "--resume"]) == 0


def test_evaluation_on_a_full_disk(model_folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        refuse(patch, "result.json")
        assert run(eval_words(model_folder, tmp_path / "a")) == 1
    line = last_line(capsys)
    assert f"{tmp_path}/a/result.json" in line
    assert "No space left" in line
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"journal.jsonl", "answers.jsonl"}
    assert run(eval_words(model_folder, tmp_path / "a", "--resume")) == 0
    with largest_file(10):
        assert run(eval_words(model_folder, tmp_path / "b")) == 1
    assert f"{tmp_path}/b/journal.jsonl" in last_line(capsys)
    assert run(eval_words(model_folder, tmp_path / "b", "--resume")) == 0
    assert run(eval_words(model_folder, tmp_path / "c")) == 0
    (tmp_path / "d").mkdir()
    with largest_file(1_000):
        assert run(["compare", f"{tmp_path}/c/result.json", "--out", f"{tmp_path}/d"]) == 1
    assert f"{tmp_path}/d: File too large" in last_line(capsys)


def test_a_folder_that_cannot_be_written_shows_before_the_work(model_folder, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("decoded in vain"))
    assert run(eval_words(model_folder, tmp_path / "file" / "out")) == 1
    assert f"{tmp_path}/file/out" in last_line(capfd)


@pytest.mark.parametrize(
    "error, said",
    [
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero (a defect; --debug shows where)"),
        (torch.OutOfMemoryError("far too\nmuch"), "--batch-size"),
        (OSError(errno.EIO, "Input/output error", "/some/file"), "/some/file: Input/output error (--debug"),
    ],
)
def test_whatever_else_goes_wrong_is_one_line(error, said, model_folder, tmp_path, monkeypatch, capfd):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Engine, "generate", fail)
    assert run(eval_words(model_folder, tmp_path / "out")) == 1
    assert said in last_line(capfd)
    with pytest.raises(type(error)):  # Python prints the traceback
        run(eval_words(model_folder, tmp_path / "other", "--debug"))


def test_debug_shows_the_traceback_of_a_wrong_request():
    done = subprocess.run([sys.executable, "-m", "t3d.cli", "train", "nowhere.yaml", "--debug"], capture_output=True)
    assert done.returncode != 0
    assert b"Traceback" in done.stderr
    assert b"RequestError" in done.stderr


def test_ctrl_c_keeps_finished_shards(model_folder, tmp_path, monkeypatch, capfd):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(rollout_words(model_folder, whole)) == 0
    generate, calls = Engine.generate, []

    def interrupted_in_the_second(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", interrupted_in_the_second)
        assert run(rollout_words(model_folder, out)) == 130
    assert "interrupted" in last_line(capfd)
    assert list(read(out, allow_partial=True)) == list(read(whole))[:8]
    assert run(rollout_words(model_folder, out, "--resume")) == 0
    assert list(read(out)) == list(read(whole))


def test_ctrl_c_in_training_keeps_checkpoints(recipe, tmp_path, monkeypatch, capfd):
    from t3d.training.learner import Learner

    step = Learner.step

    def interrupted_in_the_second(self, batches, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, batches, number)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted_in_the_second)
        assert run(["train", str(recipe)]) == 130
    assert "interrupted" in last_line(capfd)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    assert run(["train", str(recipe), "--resume"]) == 0


def test_ctrl_c_of_a_real_process(model_folder, tmp_path):
    out = tmp_path / "out"
    words = rollout_words(model_folder, out, "--limit", "4000", "--rows-per-shard", "4")
    process = subprocess.Popen(
        [sys.executable, "-m", "t3d.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (out / "shard-00000.parquet").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    complaints = [line for line in stderr.splitlines() if line.startswith("t3d: ")]
    assert len(complaints) == 1
    assert "interrupted" in complaints[0]
    assert sum(1 for _ in read(out, allow_partial=True)) % 4 == 0

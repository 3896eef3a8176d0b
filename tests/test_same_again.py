"""Same seed, same machine, same result: each command twice, in processes of its own; and in batches of other shapes."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import yaml

from t3d.cli import run
from t3d.trajectories import read

COMMAND = (sys.executable, "-c", "import sys; from t3d.cli import run; sys.exit(run(sys.argv[1:]))")
TIMES = {"seconds", "elapsed", "time", "command", "started", "date"}


def sums_of(folder, pattern):
    """The checksum of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob(pattern))}


def in_a_process_of_its_own(words):
    """With another hash seed, so that no order of a set can have a say."""
    done = subprocess.run(
        [*COMMAND, *words], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]


def rollout_words(model_folder, out, *more):
    words = f"rollout --model {model_folder} --task story --limit 12 --rows-per-shard 8 --device cpu --out {out}"
    return [*words.split(), "--max-new-tokens", "13", "--temperature", "1.0", "--samples", "2", *more]


def test_rollout(model_folder, tmp_path):
    assert run(rollout_words(model_folder, tmp_path / "here")) == 0
    in_a_process_of_its_own(rollout_words(model_folder, tmp_path / "there"))
    files = sums_of(tmp_path / "here", "*.parquet")
    assert len(files) == 3
    assert files == sums_of(tmp_path / "there", "*.parquet")


@pytest.mark.parametrize("more", [("--batch-size", "1"), ("--batch-size", "5"), ("--backend", "plain")])
def test_rollout_in_other_batches(more, model_folder, tmp_path):
    """Tokens and their order of reveal; a product of another shape may round a confidence in another way."""
    assert run(rollout_words(model_folder, tmp_path / "one", "--backend", "continuous")) == 0
    assert run(rollout_words(model_folder, tmp_path / "other", *more)) == 0
    rows, others = (list(read(tmp_path / name)) for name in ("one", "other"))
    assert len(rows) == 24
    for row, other in zip(rows, others, strict=True):
        assert (row.prompt_id, row.sample, row.seed) == (other.prompt_id, other.sample, other.seed)
        assert (row.response_ids, row.reveal_step) == (other.response_ids, other.reveal_step)
        assert row.confidence == pytest.approx(other.confidence, abs=1e-5)


@pytest.mark.parametrize("name", ["t3d", "dparallel", "tad"])
def test_training(name, model_folder, trajectory_folder, tmp_path):
    def recipe(out):
        fields = {
            "model": {"source": str(model_folder), "adapter": {"rank": 2, "dropout": 0.2} if name == "tad" else None},
            "objective": {"name": name},
            "data": {"trajectories": str(trajectory_folder), "keep_unfinished": True},
            "optim": {"steps": 4, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 0},
            "reference": {"refresh_every": 2},
            "checkpoint": {"every_steps": 2},
            "log_every": 1,
            "device": "cpu",
            "out": str(out),
        }
        file = tmp_path / f"{out.name}.yaml"
        file.write_text(yaml.safe_dump(fields))
        return ["train", str(file)]

    here, there = tmp_path / "here", tmp_path / "there"
    assert run(recipe(here)) == 0
    in_a_process_of_its_own(recipe(there))
    for pattern in ("model/*.safetensors", "checkpoints/step-000004/*.safetensors"):
        assert sums_of(here, pattern)
        assert sums_of(here, pattern) == sums_of(there, pattern)
    lines, others = (timeless((out / "metrics.jsonl").read_text().splitlines()) for out in (here, there))
    assert len(lines) == 4
    assert lines == others


def timeless(lines):
    clocked = ("seconds", "tokens_per_second", "examples_per_second", "mfu")
    return [{key: value for key, value in json.loads(line).items() if key not in clocked} for line in lines]


def test_evaluation(model_folder, tmp_path):
    def words(out):
        line = f"eval --model {model_folder} --out {out} --limit 4 --tokens-per-step 1,4 --device cpu"
        return [*line.split(), "--max-new-tokens", "9", "--threshold", "", "--temperature", "1.0", "--samples", "2"]

    assert run(words(tmp_path / "here")) == 0
    in_a_process_of_its_own(words(tmp_path / "there"))
    answers = [answers_in(tmp_path / name) for name in ("here", "there")]
    assert len(answers[0]) == 16
    assert answers[0] == answers[1]


def answers_in(folder):
    """Every stored answer with its verdict, less what a clock had a say in."""
    rows = []
    for file in sorted(folder.rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            rows.append({key: value for key, value in row.items() if key not in TIMES})
    return rows

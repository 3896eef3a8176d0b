"""A disk that is full, or may not be written, at each write in turn: one line, exit code 1, and a resume that ends."""

import errno
import json
import os

import pytest
import yaml
from safetensors.torch import load_file
from test_failures import eval_words, largest_file, last_line, rollout_words

from t3d.cli import run
from t3d.trajectories import read

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

"""Tiny training runs that several test files share: inputs, recipes, and how two runs are compared."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import random_row, tiny_model

from t3d import trajectories
from t3d.config import make_recipe
from t3d.models import load_tokenizer, random_model, save_model, tokenizer_fingerprint
from t3d.training.learner import Learner
from t3d.trajectories import TrajectoryMeta
from t3d.types import Trajectory

TOKENIZER = load_tokenizer("story-tokenizer")
NUM_ROWS = 10


def meta(**changes):
    known = {
        "model": "tiny",
        "revision": None,
        "tokenizer_fingerprint": tokenizer_fingerprint(TOKENIZER),
        "mask_token_id": TOKENIZER.mask_token_id,
        "eos_token_ids": (TOKENIZER.eos_token_id,),
        "block_size": 4,
        "steps_per_block": 2,
        "rule": "low_confidence_static",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "threshold": 0.9,
        "entropy_bound": 0.5,
        "max_new_tokens": 16,
        "seed": 0,
        "software_version": "0",
    }
    return TrajectoryMeta(**{**known, **changes})


def trajectory(index, finish_reason="stop"):
    row = random_row("", prompt_length=3 + index % 5, length=6 + index % 7, seed=index)
    response = [*row.response_ids[:-1].tolist(), TOKENIZER.eos_token_id]
    return Trajectory(
        prompt_id=f"p{index}",
        sample=0,
        prompt_ids=row.prompt_ids.tolist(),
        response_ids=response,
        reveal_step=row.reveal_step.tolist(),
        confidence=[0.5] * len(response),
        num_forwards=9,
        finish_reason=finish_reason,
        prompt_text="",
        response_text="",
        answer=None,
        seed=0,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny model of the story's vocabulary and a few trajectories."""
    folder = tmp_path_factory.mktemp("inputs")
    model = tiny_model(
        dtype=torch.float32,
        vocab_size=len(TOKENIZER),
        mask_token_id=TOKENIZER.mask_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    save_model(model, folder / "model", TOKENIZER)
    trajectories.write(folder / "trajectories", [trajectory(index) for index in range(NUM_ROWS)], meta())
    return folder


def write_story_inputs(folder):
    """As `inputs`, with a model that has room for the story's prompts; its head is not tied to its embedding."""
    shapes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4, "block_size": 4}
    shapes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    save_model(random_model({**shapes, "initializer_range": 0.3}, TOKENIZER, seed=0), folder / "model", TOKENIZER)
    trajectories.write(folder / "trajectories", [trajectory(index) for index in range(10)], meta())
    return folder


def recipe_of(inputs, out, **changes):
    """A recipe of twelve small steps; `changes` replace groups of keys, `__` stands for the dot of a sub-key."""
    fields = {
        "model": {"source": str(inputs / "model")},
        "objective": {"name": "t3d"},
        "data": {"trajectories": str(inputs / "trajectories")},
        "optim": {"steps": 12, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 2},
        "batch": {"tokens_per_batch": 60},
        "reference": {"refresh_every": 5},
        "checkpoint": {"every_steps": 4, "keep": 5},
        "log_every": 1,
        "device": "cpu",
        "out": str(out),
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        fields[group] = {**fields[group], name: value} if name else value
    return make_recipe(fields)


TIMES = {"seconds", "tokens_per_second", "examples_per_second", "mfu", "memory_gib"}
"""Metrics that no two runs share."""


def metrics_of(out):
    """The lines of a run, less what a clock had a say in."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def state_of(checkpoint):
    """Every tensor of a checkpoint: weights, reference, optimizer."""
    tensors = {f"model {key}": value for key, value in load_file(checkpoint / "model.safetensors").items()}
    if (checkpoint / "reference.safetensors").exists():
        reference = load_file(checkpoint / "reference.safetensors")
        tensors |= {f"reference {key}": value for key, value in reference.items()}
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for parameter, moments in optimizer["state"].items():
        tensors |= {f"optimizer {parameter} {key}": value for key, value in moments.items()}
    return tensors


def assert_same_state(left, right):
    left, right = state_of(left), state_of(right)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def refusal_of(kind, call, *arguments):
    with pytest.raises(kind) as refusal:
        call(*arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


PROGRAM = """
import sys
from t3d.cli import run
sys.exit(run(["train", sys.argv[1]]))
"""


def cut_short(whole, out):
    """A copy of a finished run as it was after its first checkpoint."""
    shutil.copytree(whole, out)
    for later in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    shutil.rmtree(out / "model")
    (out / "outcome.json").unlink()


def start_processes(recipe, file, count):
    """`count` processes that train together on the CPU; their output and errors are one pipe each."""
    file.write_text(recipe.model_dump_json())
    return start_program(PROGRAM, file, count)


def start_program(program, file, count):
    """`count` processes that run a program on a file and know of each other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


class Killed(BaseException):
    pass


def kill_in_step(monkeypatch, step):
    """The run dies while it computes optimizer step `step` (1-based)."""
    original = Learner.step

    def killed(self, batches, number):
        if number == step:
            raise Killed
        return original(self, batches, number)

    monkeypatch.setattr(Learner, "step", killed)

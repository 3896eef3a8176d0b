"""What several test files share: a tiny random model on disk, and trajectories that it rolled out."""

import gc
import os
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if find_spec("triton") is None:  # not made for this platform
    collect_ignore_glob = ["test_kernels_*.py", "test_step_kernels.py"]
elif not torch.cuda.is_available():
    import interpreted_triton  # noqa: F401  before any kernel is defined

from t3d.cli import run
from t3d.models import load_tokenizer, random_model, save_model

torch.set_num_threads(1)

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.4,
    "block_size": 4,
}
"""Shapes of a model that decodes in milliseconds; its tokens are nonsense."""
STOP_IDS = 60
"""So many of its ids end a response, that some do so early and some never."""


def save_tiny_model(folder, seed=0, **shapes):
    """A random model with the built-in task's tokenizer, as a user would have it on disk."""
    tokenizer = load_tokenizer("story-tokenizer")
    model = random_model({**TINY, **shapes}, tokenizer, seed=seed)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 100 + STOP_IDS)]
    save_model(model, folder, tokenizer)
    return folder


def pytest_collection_finish():
    """What is imported stays: to look through it wherever memory is released took half of some tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def compiled_anew(request):
    """Each test of a GPU compiles for itself: dynamo gives up on code that it compiled for eight kinds of model."""
    if request.node.get_closest_marker("gpu"):
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random model with B = 4 and 256 positions. Only read it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def trajectory_folder(tmp_path_factory, model_folder):
    """24 answers of the tiny model in three shards, two tokens per step. Only read it."""
    folder = tmp_path_factory.mktemp("trajectories") / "tiny"
    arguments = f"rollout --model {model_folder} --out {folder} --task story --limit 24 --rows-per-shard 8 --device cpu"
    assert run([*arguments.split(), *["--max-new-tokens", "21", "--steps-per-block", "2", "--temperature", "1.0"]]) == 0
    return folder

"""Which way several processes share a training, by arithmetic on what each would hold; what is refused in one line."""

import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from training_runs import recipe_of, refusal_of

from t3d.errors import RequestError
from t3d.training import Trainer
from t3d.training.parallel.strategy import check_evaluation, is_sharded, state_bytes, with_strategy
from t3d.training.requirements import check_training

LAUNCH = Path(__file__).parent.parent / "launch"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB, BILLION = 2**30, 10**9


def recipe(**changes):
    return recipe_of(Path("nowhere"), "run", **{"precision": "bf16", **changes})


@pytest.fixture
def device_of_80(monkeypatch):
    monkeypatch.setattr("t3d.training.parallel.strategy.memory_of", lambda device: 80 * GIB)


@pytest.mark.parametrize(
    "changes, bytes_a_weight",
    [
        ({}, 4 + 4 + 8 + 4 + 2),  # weights, gradients, moments, DDP's buckets, reference in bfloat16
        ({"precision": "fp32"}, 4 + 4 + 8 + 4 + 4),
        ({"precision": "bf16_pure"}, 2 + 2 + 4 + 2 + 2),
        ({"reference": {"form": "offload"}}, 4 + 4 + 8 + 4),
        ({"objective": {"name": "sft"}}, 4 + 4 + 8 + 4),
        ({"objective": {"name": "tad"}}, 4 + 4 + 8 + 4 + 2),
        ({"optim__optimizer": "adamw_8bit"}, 4 + 4 + 2 + 4 + 2),
    ],
)
def test_bytes_a_weight_by_hand(changes, bytes_a_weight):
    assert state_bytes(recipe(**changes), 1000) == 1000 * bytes_a_weight


def test_shards_need_no_buckets_and_hold_a_part_of_the_rest():
    assert state_bytes(recipe(), 1000, num_shards=4) == 1000 * (4 + 4 + 8 + 2) // 4


def test_auto_is_ddp_where_everything_fits(device_of_80):
    """70% of 80 GiB hold 22 bytes each of 2.7 billion weights."""
    for num_weights, strategy in ((2.7, "ddp"), (2.8, "fsdp")):
        chosen = with_strategy(recipe(), int(num_weights * BILLION), 8, CUDA)
        assert chosen.distributed.strategy == strategy
        assert is_sharded(chosen, 8) == (strategy == "fsdp")


def test_gradients_are_kept_whole_where_they_fit_well(device_of_80):
    """15% of 80 GiB hold 4 bytes each of 3.2 billion gradients."""
    for num_weights, gradients in ((3.2, "whole"), (3.3, "sharded")):
        assert with_strategy(recipe(), int(num_weights * BILLION), 8, CUDA).distributed.gradients == gradients
    asked = recipe(distributed={"gradients": "whole"})
    assert with_strategy(asked, 30 * BILLION, 8, CUDA).distributed.gradients == "whole"


def test_what_is_asked_for_stays(device_of_80):
    for strategy in ("ddp", "fsdp"):
        asked = recipe(distributed={"strategy": strategy})
        assert with_strategy(asked, BILLION, 2, CUDA).distributed.strategy == strategy
        assert with_strategy(asked, 30 * BILLION, 2, CUDA).distributed.strategy == strategy


def test_one_process_needs_nothing():
    asked = recipe(distributed={"strategy": "fsdp"})
    assert with_strategy(asked, 30 * BILLION, 1, CUDA) == asked
    assert not is_sharded(asked, 1)


def test_the_cpu_and_adapters_take_ddp(device_of_80, monkeypatch):
    adapted = recipe(model__adapter={"rank": 4})
    assert with_strategy(adapted, 30 * BILLION, 2, CUDA).distributed.strategy == "ddp"
    monkeypatch.setattr("t3d.training.parallel.strategy.memory_of", lambda device: None)
    assert with_strategy(recipe(), 30 * BILLION, 2, CPU).distributed.strategy == "ddp"


def test_an_evaluation_without_room_is_refused(device_of_80):
    """On 8 processes 30 billion weights take 63 GiB each, and a whole copy 56; on 32 there is room for it."""
    asked = recipe(evaluation={"every_steps": 1})
    message = refusal_of(RequestError, check_evaluation, asked, 30 * BILLION, 8, CUDA)
    assert "copy of the model (56 GiB) does not fit beside a process's shards (63 GiB of 80)" in message
    check_evaluation(asked, 30 * BILLION, 32, CUDA)
    check_evaluation(recipe(), 30 * BILLION, 8, CUDA)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model__adapter": {"rank": 4}}, "strategy: ddp"),
        ({"optim__optimizer": "adamw_8bit"}, "optim.optimizer: adamw"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(changes, said):
    asked = recipe(distributed={"strategy": "fsdp"}, **changes)
    assert said in refusal_of(RequestError, check_training, asked)


def test_a_launch_with_accelerates_own_fsdp_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "distributed.strategy: fsdp" in refusal_of(RequestError, Trainer, recipe_of(tmp_path, tmp_path / "run"))


# Launch files


def test_accelerate_takes_its_launch_file():
    """It knows every key, and wraps nothing itself."""
    config = load_config_from_file(str(LAUNCH / "accelerate-fsdp.yaml"))
    assert (str(config.distributed_type).rpartition(".")[2], config.num_processes) == ("MULTI_GPU", 8)
    assert not config.fsdp_config


@pytest.mark.parametrize("name", ["torchrun-train.sh", "slurm-train.sbatch"])
def test_launch_scripts_are_shell(name):
    assert subprocess.run(["bash", "-n", LAUNCH / name]).returncode == 0
    assert 't3d.cli train "$@" --resume' in (LAUNCH / name).read_text()

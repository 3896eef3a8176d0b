"""Which way several processes share a training, by arithmetic on what each would hold; what is refused in one line."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from training_runs import recipe_of, refusal_of

from t3d.errors import RequestError
from t3d.training import Trainer
from t3d.training.parallel.strategy import check_evaluation, is_sharded, num_shards, state_bytes, with_strategy
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


def test_groups_of_processes_each_hold_everything(device_of_80):
    asked = recipe(distributed={"strategy": "fsdp", "shards": 8})
    assert num_shards(with_strategy(asked, BILLION, 32, CUDA), 32) == 8
    assert num_shards(with_strategy(asked, BILLION, 1, CUDA), 1) == 1
    assert num_shards(with_strategy(recipe(distributed={"strategy": "fsdp"}), BILLION, 32, CUDA), 32) == 32
    assert num_shards(with_strategy(recipe(distributed={"strategy": "ddp"}), BILLION, 32, CUDA), 32) == 1
    for count in (4, 12):
        assert f"divide the number of processes, {count}" in refusal_of(
            RequestError, with_strategy, asked, BILLION, count, CUDA
        )


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_shards_are_counted_of_fsdp_alone(strategy):
    assert "set strategy: fsdp too" in refusal_of(
        RequestError, lambda: recipe(distributed={"strategy": strategy, "shards": 2})
    )


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


def run_with_commands(script, folder, environment=()):
    """Run a launch script where commands of other machines only write down how they were called."""
    folder.mkdir()
    for name in ("torchrun", "srun"):
        fake = 'echo "$(basename "$0") $* | $TORCH_ELASTIC_SHUTDOWN_TIMEOUT $SRUN_CPUS_PER_TASK"\n'
        (folder / name).write_text(f"#!/bin/bash\n{fake}")
    (folder / "scontrol").write_text("#!/bin/bash\nprintf 'node-7\\nnode-8\\n'\n")
    for file in folder.iterdir():
        file.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(LAUNCH / script), "recipe.yaml", "optim.steps=4"],
        env={**os.environ, "PATH": path, **dict(environment)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_torchrun_is_launched_for_all_gpus(tmp_path):
    """And waits longer than its half minute for a checkpoint when it is told to stop."""
    (line,) = run_with_commands("torchrun-train.sh", tmp_path / "bin").splitlines()
    command, limit = line.split(" | ")
    assert command.startswith("torchrun --standalone --nproc-per-node gpu ")
    assert command.endswith("--module t3d.cli train recipe.yaml optim.steps=4 --resume")
    assert int(limit) >= 300


def test_slurm_starts_torchrun_on_every_machine(tmp_path):
    """With the job's cores, which srun takes from nowhere else; one that fails ends the others, which would wait."""
    known = {"SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "5"}
    (line,) = run_with_commands(
        "slurm-train.sbatch", tmp_path / "bin", {**known, "SLURM_CPUS_PER_TASK": "64"}
    ).splitlines()
    command, exported = line.split(" | ")
    assert command.startswith("srun --kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node gpu ")
    assert "--rdzv-endpoint node-7:29500" in command
    assert command.endswith("--module t3d.cli train recipe.yaml optim.steps=4 --resume")
    limit, cores = exported.split()
    assert int(limit) >= 300
    assert cores == "64"


def test_slurm_warns_before_the_time_is_over():
    text = (LAUNCH / "slurm-train.sbatch").read_text()
    assert "#SBATCH --signal=TERM@600" in text
    assert "#SBATCH --open-mode=append" in text  # a job that is sent again would overwrite its log

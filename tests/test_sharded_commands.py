"""Commands under torchrun whose processes hold one model together: as one process's, with one that speaks."""

import json

import pytest
import torch
from conftest import save_tiny_model
from sharded_runs import start_together

from t3d.cli import run
from t3d.evaluation import read_result
from t3d.trajectories import read, read_meta, state_of

torch.set_num_threads(1)

ROLLOUT = (
    "rollout --task story --limit 10 --rows-per-shard 2 --max-new-tokens 16 --steps-per-block 2 --device cpu "
    "--backend continuous"
)
EVAL = "eval --benchmark story --limit 4 --max-new-tokens 112 --tokens-per-step 2 --threshold= --device cpu"
PAIR = ("--tensor-parallel", "2")


def rollout_of(model, out, *more):
    return [*ROLLOUT.split(), "--model", str(model), "--out", str(out), *more]


def eval_of(model, out, *more):
    return [*EVAL.split(), "--model", str(model), "--out", str(out), *more]


def answers_of(folder):
    """What an evaluation wrote of each answer, but for its time and its surprisal, which rounds differently."""
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in answer.items() if name not in ("seconds", "surprisal")} for answer in answers
    ]


def tokens_of(folder):
    """All that a rollout decoded, but for confidences, which sums in another order round differently."""
    return [
        (row.prompt_id, row.response_ids, row.reveal_step, row.num_forwards, row.finish_reason) for row in read(folder)
    ]


@pytest.fixture(scope="module")
def everything(model_folder, tmp_path_factory):
    """The folder that all commands left files in, and {command: what each process said} of each group of processes."""
    out = tmp_path_factory.mktemp("together")
    save_tiny_model(out / "three heads", num_attention_heads=3, num_key_value_heads=3)
    of_two = {
        "rollout": rollout_of(model_folder, out / "rollout", *PAIR),
        "resumed": rollout_of(model_folder, out / "rollout", *PAIR, "--resume"),
        "begun": rollout_of(model_folder, out / "rollout", *PAIR),
        "eval": eval_of("story-mini", out / "eval", *PAIR),
        "three heads": rollout_of(out / "three heads", out / "three", *PAIR),
    }
    of_four = {"rollout": rollout_of(model_folder, out / "four", *PAIR)}
    groups = [
        (count, {job: ("command", *arguments) for job, arguments in jobs.items()}, None)
        for count, jobs in ((2, of_two), (4, of_four))
    ]
    lost = ("command_with_a_loss", 5, *rollout_of(model_folder, out / "killed", *PAIR))
    return out, start_together(out, *groups, (2, {"killed": lost}, 1))


@pytest.fixture
def together(everything):
    """What each of two processes said, by command; and the folder that it left files in."""
    out, groups = everything
    return out, groups[0]


@pytest.fixture(scope="module")
def alone(model_folder, tmp_path_factory):
    """The folder of the rollout by one process."""
    out = tmp_path_factory.mktemp("alone") / "rollout"
    assert run(rollout_of(model_folder, out)) == 0
    return out


def test_a_rollout_is_that_of_one_process_and_is_resumed(together, alone):
    out, found = together
    assert tokens_of(out / "rollout") == tokens_of(alone)
    assert read_meta(out / "rollout") == read_meta(alone)
    assert [each["code"] for each in found["rollout"]] == [0, 0]
    assert found["rollout"][0]["out"].startswith(f"{out / 'rollout'}: 10 answers")
    assert found["rollout"][1] == {"code": 0, "out": "", "err": ""}
    assert "nothing to do" in found["resumed"][0]["out"]
    assert found["resumed"][1] == {"code": 0, "out": "", "err": ""}


def test_what_one_process_refuses_all_leave_and_one_says(together):
    for job, said in (("begun", "add --resume"), ("three heads", "num_key_value_heads is 3, which 2 processes")):
        first, second = together[1][job]
        assert first["code"] == 2
        assert said in first["err"]
        assert first["err"].count("\n") == 1
        assert (second["out"], second["err"]) == ("", "")


def test_an_evaluation_scores_what_one_process_does(together, tmp_path):
    out, found = together
    assert [each["code"] for each in found["eval"]] == [0, 0]
    assert found["eval"][1]["out"] == found["eval"][1]["err"] == ""
    assert run(eval_of("story-mini", tmp_path / "alone")) == 0
    ours, alone = (read_result(each / "result.json") for each in (out / "eval", tmp_path / "alone"))
    assert ours.device == f"2 x {alone.device}"
    assert [each.accuracy for each in ours.settings] == [each.accuracy for each in alone.settings] == [0.5]
    assert answers_of(out / "eval") == answers_of(tmp_path / "alone")


def test_four_processes_are_two_replicas_that_share_the_shards(everything):
    out, (_, of_four, _) = everything
    found = of_four["rollout"]
    assert [each["code"] for each in found] == [0, 0, 0, 0]
    parts = [each["out"].split(":")[0] for each in found]
    assert parts == [f"{out / 'four'}, part 0/2", "", f"{out / 'four'}, part 1/2", ""]
    assert found[1]["err"] == found[3]["err"] == ""
    shards = sorted(file.name for file in (out / "rollout").glob("*.parquet"))
    assert len(shards) == 5
    for name in shards:  # byte for byte: the same sums in the same order
        assert (out / "four" / name).read_bytes() == (out / "rollout" / name).read_bytes()


def test_a_process_that_dies_ends_the_run_and_a_resumed_one_has_the_same_rows(everything, alone, model_folder):
    """It dies with the fifth response, the first of the third shard."""
    out, (*_, killed) = everything
    (said,) = killed["killed"]
    assert (said["code"], said["out"]) == (1, "")
    last_line = said["err"].splitlines()[-1]
    assert last_line.startswith("t3d: process 0 has lost another one of those that hold the model with it")
    assert last_line.endswith("start again with --resume")
    assert state_of(out / "killed").num_finished == 2
    assert run(rollout_of(model_folder, out / "killed", "--resume")) == 0
    assert tokens_of(out / "killed") == tokens_of(alone)


@pytest.mark.parametrize(
    ("command", "world", "said"),
    [
        ("rollout --task story --limit 1 --tensor-parallel 2", {}, "there are 1: start it by torchrun"),
        ("rollout --task story --limit 1 --tensor-parallel 2 --workers ray", {}, "a Ray worker has one GPU"),
        ("eval --tensor-parallel 2", {"RANK": "0", "WORLD_SIZE": "4"}, "here are processes for 2"),
        ("serve --tensor-parallel 2", {}, "t3d rollout --tensor-parallel, or a server"),
    ],
)
def test_commands_refuse_in_a_line(command, world, said, model_folder, tmp_path, monkeypatch, capsys):
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    out = [] if command.startswith("serve") else ["--out", str(tmp_path / "out")]
    assert run([*command.split(), "--model", str(model_folder), *out]) == 2
    assert said in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

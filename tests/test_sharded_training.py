"""Several processes are one: DDP and FSDP2 on the CPU, and checkpoints that another number of processes reads."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from together import Job, train_together
from training_runs import (
    cut_short,
    inputs,  # noqa: F401
    metrics_of,
    recipe_of,
    refusal_of,
    write_story_inputs,
)

from t3d import trajectories
from t3d.config import make_recipe
from t3d.errors import RequestError
from t3d.models import load_model
from t3d.training import Trainer, train
from t3d.training.run.checkpoint import SHARDS

FSDP, DDP = {"distributed": {"strategy": "fsdp"}}, {"distributed": {"strategy": "ddp"}}
PAIRS = {"distributed": {"strategy": "fsdp", "shards": 2}}
SHORT = {"optim__steps": 6, "checkpoint": {}}
"""Until after the first refresh, and nothing is kept on the way."""
UNEVEN = {"batch": {"tokens_per_batch": 1}, "optim__examples_per_step": 5}
"""Three batches a step in one process, two in the other."""

MIXTURE = {"model_type": "sdar_moe", "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 4, "block_size": 4}
MIXTURE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
MIXTURE |= {"moe_intermediate_size": 8, "max_position_embeddings": 64}
"""Random weights of a family with experts."""
TWINS = {
    "t3d": {**FSDP, "optim__keep_moments": True},
    "tad": {"objective": {"name": "tad"}, **FSDP},
    "dparallel": {"objective": {"name": "dparallel"}, **FSDP},
    "sft": {"objective": {"name": "sft"}, **FSDP},
    "uneven": {**UNEVEN, **FSDP},
    "exchanged after every batch": {**UNEVEN, "distributed": {"strategy": "fsdp", "gradients": "sharded"}},
    "clipped": {"optim__clip_norm": 1e-3, "optim__lr": 1e-2, **FSDP},
    "mixture": {"model": {"init": MIXTURE, "tokenizer": "story-tokenizer"}, **FSDP},
    "offload": {"reference": {"form": "offload", "refresh_every": 5}, **FSDP},
    "checkpointed layers": {"compute": {"checkpoint_layers": 1}, **FSDP},
    "lora": {"model__adapter": {"rank": 4}, **DDP},
    "uneven ddp": {**UNEVEN, **DDP},
}
"""Runs that two processes do as one does. What `distributed` says is nothing to a single process."""
ROUGH = {"bf16": 2e-2, "bf16_pure": 5e-2}
"""Precision -> how far losses may be apart: the roundings are others, the stochastic ones drawn for each part."""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """As `inputs`, with a model that has room for the story's prompts, its head not tied to its embedding."""
    folder = write_story_inputs(tmp_path_factory.mktemp("story"))
    settings = folder / "model" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "temperature": 0.25, "do_sample": True}))
    return folder


def twin_recipe(name, inputs, story, out):
    """A run's recipe, in a folder for the number of processes that do it."""
    if name in ROUGH:
        return recipe_of(inputs, out / name, precision=name, **FSDP, **SHORT)
    if name == "evaluated":
        evaluation = {"every_steps": 3, "limit": 4, "tokens_per_step": [1, 4], "max_new_tokens": 8}
        return recipe_of(story, out / name, evaluation=evaluation, **FSDP, **SHORT)
    if name == "rounds":
        rollout = {"task": "story", "count": 6, "max_new_tokens": 12}
        one = {"rollout": rollout, "keep_unfinished": True, "optim": {"steps": 3}}
        given = recipe_of(story, out / name, **FSDP).model_dump(mode="json", exclude={"data"})
        return make_recipe({**given, "rounds": [one, {**one, "optimizer": "carried"}]})
    return recipe_of(inputs, out / name, **TWINS[name], **({} if name == "t3d" else SHORT))


@pytest.fixture(scope="module")
def runs(inputs, story, tmp_path_factory):
    """A folder with all runs by one process (`one`) and by two (`two`), and of these what was resumed."""
    folder = tmp_path_factory.mktemp("runs")
    names = [*TWINS, *ROUGH, "evaluated", "rounds"]
    for name in names:
        train(twin_recipe(name, inputs, story, folder / "one"))

    def job(name, kept=FSDP, **how):
        return Job(recipe_of(inputs, folder / name, **kept), notes=folder / "notes" / name, **how)

    whole = TWINS["t3d"]
    of_two = [
        Job(twin_recipe(name, inputs, story, folder / "two"), notes=folder / "notes" / "two" / name) for name in names
    ]
    of_two += [
        job("two to two", whole, goes_on_from=folder / "two" / "t3d"),
        job("one to two", whole, goes_on_from=folder / "one" / "t3d"),
        job("full disk", largest_file=2000),
        Job(recipe_of(inputs, "run", **FSDP), notes=folder / "notes" / "own disks", own_disks=True),
        Job(recipe_of(story, folder / "start", **FSDP), notes=folder / "notes" / "start", looks_at_start=True),
        Job(recipe_of(broken_model(story, folder), folder / "x", **FSDP), notes=folder / "notes" / "broken model"),
    ]
    of_four = [
        job("two to four", whole, goes_on_from=folder / "two" / "t3d"),
        job("four in pairs", {**whole, **PAIRS}),
        job("two to four in pairs", {**whole, **PAIRS}, goes_on_from=folder / "two" / "t3d"),
        Job(
            recipe_of(inputs, folder / "start in pairs", **PAIRS),
            notes=folder / "notes" / "start in pairs",
            looks_at_start=True,
        ),
    ]
    train_together([(2, of_two), (4, of_four)], folder)
    return folder


def broken_model(story, folder):
    """Inputs whose model lacks its weights."""
    inputs = folder / "broken"
    shutil.copytree(story, inputs)
    (inputs / "model" / "model.safetensors").write_bytes(b"torn")
    return inputs


def assert_alike(left, right):
    """Metrics and students up to rounding."""
    found, wanted = metrics_of(left), metrics_of(right)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for own, other in zip(found, wanted, strict=True):
        assert own.keys() == other.keys()
        for key in own:
            assert own[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), (key, own["step"])
    assert_same_files(left / "model", right / "model")


def assert_same_files(left, right):
    for name in ("config.json", "generation_config.json"):
        assert (left / name).read_text() == (right / name).read_text()
    left, right = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert {key: weight.dtype for key, weight in left.items()} == {key: weight.dtype for key, weight in right.items()}
    for key in right:
        torch.testing.assert_close(left[key], right[key], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", TWINS)
def test_two_processes_are_one(name, runs):
    assert_alike(runs / "two" / name, runs / "one" / name)


@pytest.mark.parametrize("name", ROUGH)
def test_two_processes_are_one_up_to_bfloat16(name, runs):
    found, wanted = (metrics_of(runs / count / name) for count in ("two", "one"))
    assert found[0]["loss"] != metrics_of(runs / "one" / "t3d")[0]["loss"]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=ROUGH[name])
    model = load_file(runs / "two" / name / "model" / "model.safetensors")
    assert {weight.dtype for weight in model.values()} == {torch.bfloat16 if name == "bf16_pure" else torch.float32}


def test_the_norm_that_is_clipped_is_that_of_all_parts(runs):
    """Every step is clipped hard, so that another norm would be another update."""
    lines = metrics_of(runs / "two" / "clipped")
    assert min(line["grad_norm"] for line in lines) > 1e-2


def test_the_reference_follows_part_by_part(runs):
    """It is the student again after each refresh, and at no other step."""
    for line in metrics_of(runs / "two" / "t3d"):
        assert (abs(line["real_gap"]) < 1e-6) == (line["step"] in (1, 6, 11))


def test_a_resumed_run_of_two_is_their_whole_one(runs):
    """Bit for bit: the same processes add up in the same order."""
    assert metrics_of(runs / "two to two") == metrics_of(runs / "two" / "t3d")
    left, right = (load_file(runs / name / "model" / "model.safetensors") for name in ("two to two", "two/t3d"))
    assert all(torch.equal(left[key], right[key]) for key in right)
    kept = sorted(path.name for path in (runs / "two to two" / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000008", "step-000012"]


def test_a_checkpoint_of_one_is_read_by_two(runs):
    assert not (runs / "one to two" / "checkpoints" / "step-000004" / SHARDS).exists()
    assert (runs / "one to two" / "checkpoints" / "step-000008" / SHARDS).exists()
    assert_alike(runs / "one to two", runs / "one" / "t3d")


@pytest.mark.parametrize("name", ["two/t3d", "four in pairs"])
def test_a_checkpoint_of_several_is_read_by_one(name, runs, inputs, tmp_path):
    cut_short(runs / name, tmp_path / "run")
    train(recipe_of(inputs, tmp_path / "run", **TWINS["t3d"]), resume=True)
    assert_alike(tmp_path / "run", runs / "one" / "t3d")


@pytest.mark.parametrize("name", ["two to four", "two to four in pairs"])
def test_a_checkpoint_of_two_is_read_by_four(name, runs):
    assert_alike(runs / name, runs / "one" / "t3d")


def test_four_in_pairs_are_one(runs):
    """Two groups of two, each of which holds everything."""
    assert_alike(runs / "four in pairs", runs / "one" / "t3d")


def test_moments_are_left_whole(runs):
    left, right = (torch.load(runs / count / "t3d" / "moments.pt", weights_only=True) for count in ("two", "one"))
    assert {key: left[key] for key in left if key != "state"} == {key: right[key] for key in right if key != "state"}
    assert left["state"].keys() == right["state"].keys()
    for index, moments in right["state"].items():
        for key, value in moments.items():
            torch.testing.assert_close(left["state"][index][key], value, atol=1e-7, rtol=1e-3)


def test_evaluations_of_two_are_those_of_one(runs):
    assert_alike(runs / "two" / "evaluated", runs / "one" / "evaluated")
    assert sum("accuracy@4" in line for line in metrics_of(runs / "two" / "evaluated")) == 3
    assert_same_files(*(runs / count / "evaluated" / "best" for count in ("two", "one")))
    load_model(runs / "two" / "evaluated" / "best", device="cpu")


def test_rounds_of_two_are_those_of_one(runs):
    for number in (1, 2):
        two, one = (runs / count / "rounds" / f"round-{number}" for count in ("two", "one"))
        left, right = (list(trajectories.read(folder / "trajectories")) for folder in (two, one))
        assert [row.response_ids for row in left] == [row.response_ids for row in right]
        assert_alike(two / "training", one / "training")
    assert_same_files(*(runs / count / "rounds" / "model" for count in ("two", "one")))


# What each process holds at the start


def loads(folder, count=2):
    """How often each process read a whole model."""
    return [int((folder / f"loads-{process}").read_text()) for process in range(count)]


def test_the_main_process_alone_reads_the_model(runs):
    assert loads(runs / "notes" / "two" / "t3d") == [1, 0]
    assert loads(runs / "notes" / "four in pairs", 4) == [1, 0, 0, 0]
    assert loads(runs / "notes" / "two" / "uneven ddp") == [1, 1]


def test_a_resumed_run_reads_its_checkpoint_and_no_model(runs):
    for name, count in (("two to two", 2), ("one to two", 2), ("two to four in pairs", 4)):
        assert loads(runs / "notes" / name, count) == [0] * count


@pytest.mark.parametrize("name, count", [("start", 2), ("start in pairs", 4)])
def test_what_was_dealt_out_is_the_model(name, count, runs, story, inputs):
    """Bit for bit, tied weights and others, and the rotary frequencies that no file holds; each process has a half."""
    model = load_model((story if count == 2 else inputs) / "model", device="cpu")
    wanted, frequencies = dict(model.named_parameters()), dict(model.named_buffers())
    assert frequencies
    for process in range(count):
        found = torch.load(runs / "notes" / name / f"start-{process}.pt", weights_only=True)
        for held in (found["student"], found["reference"]):
            assert held.keys() == wanted.keys()
            assert [key for key in wanted if not torch.equal(held[key], wanted[key])] == []
        for buffers in found["buffers"]:
            assert buffers.keys() == frequencies.keys()
            assert [key for key in buffers if not torch.equal(buffers[key], frequencies[key])] == []
        assert found["held"] == pytest.approx(model.num_parameters() / 2, rel=0.05)


def test_a_model_that_the_main_process_cannot_read_is_refused_by_all(runs):
    said = failures(runs / "notes" / "broken model")
    assert said[0] == said[1]
    assert "weights cannot be read" in said[0]


# Checkpoints that cannot be written or used


def failures(folder):
    """What the two processes say of why they stopped."""
    return [(folder / f"failure-{process}").read_text() for process in (0, 1)]


def test_machines_without_a_disk_that_they_share_are_found_out(runs):
    """Not when somebody wants to go on from a checkpoint of which half lies elsewhere."""
    said = failures(runs / "notes" / "own disks")
    assert said[0] == said[1]
    assert "out must be on a disk that all machines share" in said[0]
    assert "\n" not in said[0]


def test_all_go_on_from_what_the_main_process_sees(runs, inputs, tmp_path, monkeypatch):
    """Another machine's view of a shared folder may be older."""
    shutil.copytree(runs / "one" / "t3d", tmp_path / "run")
    first = tmp_path / "run" / "checkpoints" / "step-000004"
    monkeypatch.setattr("t3d.training.trainer.broadcast_object_list", lambda seen: [first])
    recipe = recipe_of(inputs, tmp_path / "run", **TWINS["t3d"])
    assert Trainer(recipe, resume=True).finished_steps == 4


def test_a_disk_that_refuses_one_process_stops_all_of_them(runs):
    """Each says the same in one line, and no half of a checkpoint is left."""
    out = runs / "full disk"
    first, second = failures(runs / "notes" / "full disk")
    assert first == second
    assert "\n" not in first
    assert "checkpoints/step-000004: " in first
    assert "earlier checkpoints are intact" in first
    assert list((out / "checkpoints").iterdir()) == []
    assert not (out / "model").exists()


@pytest.mark.parametrize("file", [f"{SHARDS}/.metadata", f"{SHARDS}/__1_0.distcp", "state.json"])
def test_a_torn_part_is_one_line(file, runs, inputs, tmp_path):
    cut_short(runs / "two" / "t3d", tmp_path / "run")
    torn = tmp_path / "run" / "checkpoints" / "step-000004" / file
    torn.write_bytes(torn.read_bytes()[:40])
    recipe = recipe_of(inputs, tmp_path / "run", **TWINS["t3d"])
    assert "step-000004: cannot be used" in refusal_of(RequestError, train, recipe, True)


def test_parts_of_another_model_are_refused(runs, story, inputs, tmp_path):
    cut_short(runs / "two" / "t3d", tmp_path / "run")
    trainer = Trainer(recipe_of(story, tmp_path / "other"))
    step = tmp_path / "run" / "checkpoints" / "step-000004"
    assert "other shapes" in refusal_of(RequestError, trainer.checkpoints.load, step, trainer.learner)


def test_a_run_says_how_it_was_shared(runs):
    """What is asked for stays asked for; whether gradients are kept whole was left open."""
    written = json.loads((runs / "two" / "t3d" / "recipe.json").read_text())
    assert written["distributed"] == {"strategy": "fsdp", "gradients": "whole", "shards": None}
    assert Path(runs, "two", "t3d", "starts.jsonl").read_text().count('"num_processes": 2') == 1

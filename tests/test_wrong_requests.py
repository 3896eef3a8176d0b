"""Wrong requests: exit code 2, one line on stderr that names what is wrong, and nothing on disk changed."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import save_tiny_model

from t3d.checksums import CHECKSUMS_FILE
from t3d.cli import run
from t3d.evaluation import read_result
from t3d.models import load_tokenizer
from t3d.trajectories import read, read_meta, write

RECIPE = {
    "objective": {"name": "trajectory_ce"},
    "data": {"keep_unfinished": True},
    "optim": {"steps": 2, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 0},
    "checkpoint": {"every_steps": 1},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, model_folder, trajectory_folder):
    """A folder of right and wrong things that requests may name. No request below may change it."""
    world = tmp_path_factory.mktemp("world")
    _prompt_files(world)
    shutil.copytree(model_folder, world / "model")
    (world / "model-torn").mkdir()
    for file in model_folder.iterdir():
        data = file.read_bytes()
        (world / "model-torn" / file.name).write_bytes(data[:99] if file.suffix == ".safetensors" else data)
    save_tiny_model(world / "model-wide", hidden_size=64)
    (world / "foreign").mkdir()
    (world / "foreign" / "thesis.txt").write_text("two years of work")
    (world / "file").write_text("just a file")
    _trajectories(world, trajectory_folder)
    _runs(world)
    _results(world)
    return world


def _prompt_files(world):
    (world / "prompts.jsonl").write_text('{"question": "How many?"}\n')
    (world / "empty.jsonl").write_text("\n")
    (world / "no-json.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": b}\n')
    (world / "no-prompt.jsonl").write_text('{"prompt": "a"}\n{"answer": "3"}\n')
    (world / "same-id.jsonl").write_text('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n')
    (world / "splits.jsonl").write_text('{"prompt": "a", "split": "train"}\n{"prompt": "b", "split": "test"}\n')
    (world / "two-kinds.jsonl").write_text('{"prompt": "a", "answer": 1}\n{"prompt": "b", "tests": "assert f()"}\n')
    (world / "long.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "1" * 300}) + "\n")
    (world / "mask.jsonl").write_text(
        json.dumps({"prompt": "a"})
        + "\n"
        + json.dumps({"prompt": f"b {load_tokenizer('story-tokenizer').mask_token}"})
        + "\n"
    )


def _trajectories(world, good):
    shutil.copytree(good, world / "rolled")
    shutil.copytree(good, world / "rolled-torn")
    shard = world / "rolled-torn" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    shutil.copytree(good, world / "rolled-unfinished")
    (world / "rolled-unfinished" / "shard-00002.parquet").unlink()
    rows, meta = list(read(good)), read_meta(good)
    write(world / "rolled-other-tokenizer", rows, replace(meta, tokenizer_fingerprint="0123456789abcdef"))
    write(world / "rolled-other-mask", rows, replace(meta, mask_token_id=meta.mask_token_id + 1))
    write(world / "rolled-lengthy", [replace(row, finish_reason="length") for row in rows], meta)


def _runs(world):
    fields = {**RECIPE, "model": {"source": str(world / "model")}, "out": str(world / "run")}
    fields["data"] = {**RECIPE["data"], "trajectories": str(world / "rolled")}
    (world / "recipe.yaml").write_text(yaml.safe_dump(fields))
    (world / "no-yaml.yaml").write_text("model: [")
    (world / "no-mapping.yaml").write_text("- 1\n- 2\n")
    (world / "no-optim.yaml").write_text(yaml.safe_dump({key: fields[key] for key in fields if key != "optim"}))
    (world / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert run(["train", str(world / "recipe.yaml")]) == 0
    newest = Path("checkpoints", "step-000002")
    for name, other in (("run-torn", None), ("run-other", "model-wide")):
        shutil.copytree(world / "run", world / name)
        weights = world / name / newest / "model.safetensors"
        (weights.parent / CHECKSUMS_FILE).unlink()  # else they would tell
        weights.write_bytes((world / other / weights.name).read_bytes() if other else weights.read_bytes()[:99])
    shutil.copytree(world / "run", world / "run-garbled")
    (world / "run-garbled" / "recipe.json").write_text("{")


def _results(world):
    arguments = f"eval --model {world}/model --out {world}/evaluated --limit 3 --tokens-per-step 4 --threshold ''"
    assert run([*shlex.split(arguments), "--max-new-tokens", "8", "--device", "cpu"]) == 0
    result = read_result(world / "evaluated" / "result.json")
    other = result.model_copy(update={"name": "another", "data_fingerprint": "0" * 16})
    (world / "other-problems.json").write_text(other.model_dump_json())
    (world / "no-settings.json").write_text(result.model_copy(update={"settings": []}).model_dump_json())


GENERATE = "generate Hello --model {w}/model --max-new-tokens 8"
ROLLOUT = "rollout --model {w}/model --out {w}/new --task story --limit 2 --max-new-tokens 8 --device cpu"
ROLLOUT_FILE = "rollout --model {w}/model --out {w}/new --max-new-tokens 8 --rows-per-shard 1 --prompts {w}/"
SAME_ROLLOUT = (
    "rollout --model {m} --out {w}/rolled --task story --limit 24 --rows-per-shard 8 "
    "--max-new-tokens 21 --steps-per-block 2 --temperature 1.0 --device cpu"
)
EVAL = "eval --model {w}/model --out {w}/new --limit 2 --device cpu"
TRAIN = "train {w}/recipe.yaml out={w}/new"

WRONG = {
    # the command line itself
    "unknown command": ("frobnicate", "No such command 'frobnicate'", "--help"),
    "unknown option": (f"{GENERATE} --frobnicate 3", "--frobnicate", "--help"),
    "missing argument": ("generate --model {w}/model", "prompt", "--help"),
    "missing option": ("rollout --model {w}/model", "--out", "--help"),
    "option that is no number": (f"{GENERATE} --threshold high", "--threshold", "number"),
    "limit of zero": ("rollout --model {w}/model --out {w}/new --task story --limit 0", "--limit", "1"),
    # models and where they run
    "unknown model": ("generate Hello --model stori-mini", "model stori-mini", "story-mini"),
    "model on no hub": ("generate Hello --model nobody/nothing", "model nobody/nothing", "network"),
    "model folder without a model": ("generate Hello --model {w}/foreign", "{w}/foreign", "config.json"),
    "model is a file": ("generate Hello --model {w}/file", "{w}/file", "not a folder"),
    "torn model": ("generate Hello --model {w}/model-torn", "{w}/model-torn", "weights cannot be read"),
    "unknown device": (f"{GENERATE} --device tpu", "device 'tpu'", "use cpu"),
    "device of another kind": (f"{GENERATE} --device meta", "device 'meta'", "use cpu"),
    "device that is not here": (f"{GENERATE} --device cuda:99", "device 'cuda:99'", "not on this machine"),
    "unknown dtype": (f"{GENERATE} --dtype int8", "dtype 'int8'", "float32"),
    "empty batch": (f"{ROLLOUT} --batch-size 0", "max_batch_size", "at least 1"),
    # decoding settings
    "unknown rule": (f"{GENERATE} --rule magic", "rule 'magic'", "low_confidence_static"),
    "more steps than positions": (f"{GENERATE} --block-size 4 --steps-per-block 5", "steps_per_block", "at most"),
    "more steps than the model's block": (f"{GENERATE} --steps-per-block 5", "steps_per_block", "(4), not 5"),
    "no steps": (f"{GENERATE} --steps-per-block 0", "steps_per_block must be at least 1", "not 0"),
    "empty block": (f"{GENERATE} --block-size 0", "block_size must be at least 1", "not 0"),
    "threshold of zero": (f"{GENERATE} --threshold 0", "threshold must be in (0, 1]", "not 0"),
    "threshold above one": (f"{ROLLOUT} --threshold 1.5", "threshold must be in (0, 1]", "not 1.5"),
    "threshold not a number": (f"{GENERATE} --threshold nan", "threshold must be in (0, 1]", "not nan"),
    "negative temperature": (f"{GENERATE} --temperature -1", "temperature", "0 or more"),
    "infinite temperature": (f"{EVAL} --temperature inf", "temperature", "0 or more"),
    "top_p of zero": (f"{GENERATE} --top-p 0", "top_p must be in (0, 1]", "not 0"),
    "negative top_k": (f"{GENERATE} --top-k -1", "top_k", "or more"),
    "negative entropy bound": (f"{GENERATE} --entropy-bound -1", "entropy_bound", "0 or more"),
    "no new tokens": ("generate Hello --model {w}/model --max-new-tokens 0", "max_new_tokens", "at least 1"),
    "negative seed": (f"{GENERATE} --seed -1", "--seed", "0"),
    "seed of the demo": ("demo --out {w}/new --seed -1", "--seed", "0"),
    # prompts
    "no prompts": ("rollout --model {w}/model --out {w}/new", "--prompts", "--task"),
    "two sources of prompts": (f"{ROLLOUT} --prompts {{w}}/prompts.jsonl", "--prompts", "--task"),
    "endless task": ("rollout --model {w}/model --out {w}/new --task story", "--limit", "endless"),
    "shuffled endless task": (f"{ROLLOUT} --shuffle 1", "endless", "leave shuffle out"),
    "data of a task that draws its own": (f"{ROLLOUT} --data {{w}}/prompts.jsonl", "task story", "leave data out"),
    "data without a task": (f"{ROLLOUT_FILE}prompts.jsonl --data {{w}}/prompts.jsonl", "--data", "--task"),
    "task without its data": ("rollout --model {w}/model --out {w}/new --task jsonl", "task jsonl", "--data"),
    "data on no hub": (
        "rollout --model {w}/model --out {w}/new --task gsm8k --data nobody/nothing",
        "data nobody/nothing cannot be had from the hub",
        "--data FILE",
    ),
    "split that a file does not have": (
        "rollout --model {w}/model --out {w}/new --task jsonl --data {w}/splits.jsonl --split dev",
        "splits.jsonl has no rows of split 'dev'",
        "choose one of test, train",
    ),
    "prompts of two kinds": (f"{ROLLOUT_FILE}two-kinds.jsonl", "two-kinds.jsonl, line 2", "make two files"),
    "unknown style of prompts": (f"{ROLLOUT} --prompt-style loud", "--prompt-style 'loud'", "plain"),
    "chat without a template": (f"{ROLLOUT} --prompt-style chat", "no chat template", "plain"),
    "system turn of a plain prompt": (f"{ROLLOUT} --system Hm.", "no system turn", "leave system out"),
    "form of a recipe that is not there": (
        f"{ROLLOUT} --recipe {{w}}/nowhere.yaml",
        "{w}/nowhere.yaml",
        "No such file",
    ),
    "unknown task": ("rollout --model {w}/model --out {w}/new --task chess --limit 1", "task 'chess'", "story"),
    "unknown split": (f"{ROLLOUT} --split dev", "split 'dev'", "validation"),
    "missing prompt file": (f"{ROLLOUT_FILE}nowhere.jsonl", "nowhere.jsonl", "No such file"),
    "empty prompt file": (f"{ROLLOUT_FILE}empty.jsonl", "empty.jsonl holds no rows", "one JSON object a line"),
    "malformed prompt file": (f"{ROLLOUT_FILE}no-json.jsonl", "no-json.jsonl, line 3", "one object a line"),
    "line without a prompt": (f"{ROLLOUT_FILE}no-prompt.jsonl", "no-prompt.jsonl, line 2", "`prompt` or `question`"),
    "repeated id": (f"{ROLLOUT_FILE}same-id.jsonl", "same-id.jsonl, line 2", "line 1"),
    "prompt longer than the model": (f"{ROLLOUT_FILE}long.jsonl", "prompt 1", "256 positions"),
    "prompt with the mask token": (f"{ROLLOUT_FILE}mask.jsonl", "prompt 1", "mask token"),
    "response longer than the model": (f"{ROLLOUT} --max-new-tokens 256", "max_new_tokens (256)", "256 positions"),
    # where a rollout goes
    "rollout into a foreign folder": (f"{ROLLOUT} --out {{w}}/foreign", "thesis.txt", "another --out"),
    "rollout into a file": (f"{ROLLOUT} --out {{w}}/file", "{w}/file is a file", "another --out"),
    "rollout that is there": (SAME_ROLLOUT, "{w}/rolled holds this rollout already", "--resume"),
    "resumed at another temperature": (
        f"{SAME_ROLLOUT} --resume --temperature 0.5",
        "temperature 1.0, not 0.5",
        "--out",
    ),
    "resumed with prompts of another form": (
        f"{SAME_ROLLOUT} --resume --prompt-style raw",
        "prompt.style 'plain', not 'raw'",
        "--out",
    ),
    "resumed in other shards": (f"{SAME_ROLLOUT} --resume --rows-per-shard 7", "request_fingerprint", "--out"),
    # evaluation
    "unknown benchmark": (f"{EVAL} --benchmark gsm9k", "benchmark 'gsm9k'", "story"),
    "unknown sandbox where no program runs": (f"{EVAL} --sandbox docker", "sandbox 'docker'", "bubblewrap"),
    "no benchmark": (f"{EVAL} --benchmark ,", "--benchmark", "empty"),
    "tokens per step that do not divide": (f"{EVAL} --tokens-per-step 3", "tokens-per-step 3", "block size 4"),
    "tokens per step of zero": (f"{EVAL} --tokens-per-step 0", "tokens-per-step 0", "block size 4"),
    "tokens per step in words": (f"{EVAL} --tokens-per-step 1,x", "--tokens-per-step '1,x'", "whole numbers"),
    "tokens per step with a fraction": (f"{EVAL} --tokens-per-step 1.5", "--tokens-per-step '1.5'", "whole numbers"),
    "tokens per step not a number": (f"{EVAL} --tokens-per-step nan", "--tokens-per-step 'nan'", "whole numbers"),
    "dynamic threshold in words": (f"{EVAL} --threshold high", "--threshold 'high'", "numbers"),
    "dynamic threshold above one": (f"{EVAL} --threshold 0.9,2", "threshold must be in (0, 1]", "not 2"),
    "evaluation without tokens": (f"{EVAL} --max-new-tokens 0", "--max-new-tokens", "1"),
    "answers longer than the model": (f"{EVAL} --max-new-tokens 256", "max_new_tokens (256)", "256 positions"),
    "evaluation of no model": ("eval --model nope --out {w}/new", "model nope", "spelling"),
    "evaluation into a foreign folder": ("eval --model {w}/model --out {w}/foreign", "--out {w}/foreign", "new folder"),
    "evaluation into a file": ("eval --model {w}/model --out {w}/file", "--out {w}/file", "new folder"),
    "comparison of nothing": ("compare {w}/nowhere.json", "{w}/nowhere.json", "result.json"),
    "comparison of a recipe": ("compare {w}/recipe.yaml", "{w}/recipe.yaml", "t3d eval"),
    "comparison of an empty result": ("compare {w}/no-settings.json", "{w}/no-settings.json", "t3d eval"),
    "comparison of different problems": (
        "compare {w}/evaluated/result.json {w}/other-problems.json",
        "{w}/other-problems.json",
        "data",
    ),
    "comparison into a file": ("compare {w}/evaluated/result.json --out {w}/file", "--out {w}/file", "folder"),
    "demo into a foreign folder": ("demo --out {w}/foreign", "--out {w}/foreign", "new folder"),
    "demo into a file": ("demo --out {w}/file", "--out {w}/file", "new folder"),
    # recipes
    "missing recipe": ("train {w}/nowhere.yaml", "{w}/nowhere.yaml", "No such file"),
    "recipe is not YAML": ("train {w}/no-yaml.yaml", "{w}/no-yaml.yaml", "not valid YAML"),
    "recipe is not text": ("train {w}/binary.yaml", "{w}/binary.yaml", "cannot be read"),
    "recipe is a list": ("train {w}/no-mapping.yaml", "{w}/no-mapping.yaml", "mapping of keys"),
    "recipe lacks a key": ("train {w}/no-optim.yaml", "optim", "required"),
    "unknown recipe key": (f"{TRAIN} optim.learning_rate=1", "unknown key optim.learning_rate", "spelling"),
    "wrong type in a recipe": (f"{TRAIN} optim.steps=many", "optim.steps", "integer"),
    "value out of range in a recipe": (f"{TRAIN} optim.lr=-1", "optim.lr", "greater than 0"),
    "ratio out of range": (f"{TRAIN} corruption.ratios=[2.0]", "corruption: ", "(0, 1]"),
    "unknown order": (f"{TRAIN} corruption.mask_order=sideways", "corruption.mask_order", "'trajectory'"),
    "unknown precision": (f"{TRAIN} precision=fp8", "precision", "'bf16'"),
    "unknown device in a recipe": (f"{TRAIN} device=tpu", "device", "'cpu'"),
    "two origins of data": (f"{TRAIN} data.task=story", "data: ", "either trajectories"),
    "override without a value": (f"{TRAIN} optim.lr", "override 'optim.lr'", "key=value"),
    "override of a plain value": (f"{TRAIN} optim.lr.sub=1", "override 'optim.lr.sub=1'", "not a group"),
    "override that is not YAML": (f"{TRAIN} 'optim.lr=['", "override 'optim.lr=['", "YAML"),
    "unknown objective": (f"{TRAIN} objective.name=magic", "objective 'magic'", "trajectory_ce"),
    "unknown objective option": (f"{TRAIN} objective.alpha=1", "objective trajectory_ce: alpha", "options: none"),
    "unknown model in a recipe": (f"{TRAIN} model.source=nope", "model nope", ""),
    "unknown shape of a model": (
        f"{TRAIN} model.source=null model.tokenizer=story-tokenizer 'model.init={{hidden: 3}}'",
        "model.init: unknown field hidden",
        "hidden_size",
    ),
    "unknown task in a recipe": (
        f"{TRAIN} objective.name=sft data.trajectories=null data.task=chess",
        "task 'chess'",
        "story",
    ),
    "data of no task in a recipe": (f"{TRAIN} data.data={{w}}/prompts.jsonl", "data: ", "give task too"),
    "endless task in a recipe": (
        f"{TRAIN} objective.name=sft data.trajectories=null data.task=story",
        "task story is endless",
        "count in a recipe",
    ),
    "task without worked answers": (
        f"{TRAIN} objective.name=sft data.trajectories=null data.task=jsonl data.data={{w}}/prompts.jsonl",
        "no worked answer of prompts/1",
        "",
    ),
    "unknown style of prompts in a recipe": (f"{TRAIN} prompt.style=loud", "prompt.style", "'chat'"),
    "task for an objective of trajectories": (
        f"{TRAIN} data.trajectories=null data.task=story",
        "objective trajectory_ce",
        "t3d rollout",
    ),
    # trajectories to train on
    "missing trajectories": (f"{TRAIN} data.trajectories={{w}}/nowhere", "{w}/nowhere does not exist", "folder"),
    "no trajectories": (f"{TRAIN} data.trajectories={{w}}/foreign", "{w}/foreign has no .manifest.json", "t3d rollout"),
    "trajectories of another tokenizer": (
        f"{TRAIN} data.trajectories={{w}}/rolled-other-tokenizer",
        "rolled-other-tokenizer: made with another tokenizer",
        "roll out again",
    ),
    "trajectories of another mask id": (
        f"{TRAIN} data.trajectories={{w}}/rolled-other-mask",
        "rolled-other-mask: mask id",
        "roll out again",
    ),
    "unfinished trajectories": (
        f"{TRAIN} data.trajectories={{w}}/rolled-unfinished",
        "rolled-unfinished is unfinished: 1 of 3 shards",
        "--resume",
    ),
    "torn trajectories": (
        f"{TRAIN} data.trajectories={{w}}/rolled-torn",
        "rolled-torn/shard-00001.parquet is damaged",
        "--resume",
    ),
    "no finished answer": (
        f"{TRAIN} data.trajectories={{w}}/rolled-lengthy data.keep_unfinished=false",
        "none of 24 ended by a stop token",
        "--max-new-tokens",
    ),
    # where a run goes
    "training into a foreign folder": ("train {w}/recipe.yaml out={w}/foreign", "out {w}/foreign", "new folder"),
    "training into a file": ("train {w}/recipe.yaml out={w}/file", "out {w}/file: is a file", "folder"),
    "run that is there": ("train {w}/recipe.yaml", "out {w}/run: holds this run already", "--resume"),
    "resumed with another recipe": (
        "train {w}/recipe.yaml optim.lr=0.5 --resume",
        "out {w}/run: holds a run with another optim.lr",
        "another out",
    ),
    "run with a garbled recipe": (
        "train {w}/recipe.yaml out={w}/run-garbled --resume",
        "run-garbled: its recipe.json cannot be read",
        "another out",
    ),
    "torn checkpoint": (
        "train {w}/recipe.yaml out={w}/run-torn --resume",
        "run-torn/checkpoints/step-000002",
        "remove",
    ),
    "checkpoint of another model": (
        "train {w}/recipe.yaml out={w}/run-other --resume",
        "run-other/checkpoints/step-000002",
        "other shapes",
    ),
}


def tree(folder):
    """Every path below a folder, with its contents' hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_request(kind, world, model_folder, capfd, monkeypatch):
    monkeypatch.chdir(world)  # a name such as "nope" must not be found by accident
    command, *fragments = [text.replace("{w}", str(world)).replace("{m}", str(model_folder)) for text in WRONG[kind]]
    before = tree(world)
    capfd.readouterr()
    code = run(shlex.split(command))
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("t3d: ")
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err
    assert tree(world) == before


def test_there_are_many_kinds():
    assert len(WRONG) >= 100


def test_the_requests_beside_the_wrong_ones_are_right(world, tmp_path, capfd):
    """The bases that the table varies do work, so each line fails for its own reason only."""
    arguments = {"w": str(world)}
    for index, command in enumerate((GENERATE, ROLLOUT, f"{ROLLOUT_FILE}prompts.jsonl", EVAL, TRAIN)):
        words = shlex.split(command.replace("{w}/new", str(tmp_path / str(index))).format(**arguments))
        assert run(words) == 0, capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["rollout", "--help"]])
def test_help(arguments, capfd):
    assert run(arguments) == 0
    out, err = capfd.readouterr()
    assert "Usage: t3d" in out
    assert err == ""


def test_version(capfd):
    import t3d

    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"{t3d.__version__}\n"

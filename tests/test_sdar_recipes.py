"""The recipes of the paper: they differ where their names say so, run as their heads say, and cost what these say."""

import importlib.util
import json
import math
import re
import shlex
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import typer
from tiny import random_row
from training_runs import TOKENIZER

from t3d.cli import app, run
from t3d.config import load_recipe
from t3d.doctor import GPUS, Cluster, examine
from t3d.doctor.host import disk
from t3d.models import load_model, random_model, save_model
from t3d.tasks import TASKS
from t3d.trajectories import read

FOLDER = Path(__file__).parent.parent / "recipes" / "sdar"
SETS, MODELS, DATA, BLOCKS = ("paper", "improved"), ("1.7b", "4b"), ("math", "code"), (4, 8)
RECIPES = list(product(SETS, MODELS, DATA, BLOCKS))
TASK_OF = {"math": "math-train", "code": "primeintellect"}
COMMANDS = typer.main.get_command(app).commands
NUM_PROMPTS, NUM_EXAMPLES, TOKENS = 16, 4, 24
ROLLOUT_OVERRIDES = ["--max-new-tokens", str(TOKENS), "--device", "cpu"]
TRAIN_OVERRIDES = {"optim.steps": 2, "optim.examples_per_step": NUM_EXAMPLES, "device": "cpu", "log_every": 1}
"""What the size of the model and of its rollouts forces, and nothing else; `--data` too: the hub is not asked."""
SHAPES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "block_size": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def name_of(recipe):
    _, model, data, block = recipe
    return f"{model}-{data}-block{block}"


def file_of(recipe):
    return FOLDER / recipe[0] / f"{name_of(recipe)}.yaml"


every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe[0]}-{name_of(recipe)}")


def head_of(recipe):
    """The comment that opens a file, without the marks."""
    lines = file_of(recipe).read_text().splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith("# "))


def commands_of(recipe):
    """The words of each command of the head, by the command's name."""
    text = re.sub(r"\\\n\s*", "", head_of(recipe))
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  t3d ")]
    return {words[1]: words[2:] for words in commands}


def options_of(recipe, command):
    """What the command line makes of a command of the head, by the option's name."""
    return COMMANDS[command].make_context(command, commands_of(recipe)[command]).params


# --- alike but for what their names say ---


def flat(fields, at=""):
    """Dotted key -> value, of all groups."""
    if not isinstance(fields, dict):
        return {at: fields}
    return {key: value for name, each in fields.items() for key, value in flat(each, f"{at}.{name}".strip(".")).items()}


def differences(left, right):
    """The keys in which two recipes differ."""
    left, right = (flat(load_recipe(file_of(each)).model_dump()) for each in (left, right))
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


NAMES = {"out", "data.trajectories"}


@pytest.mark.parametrize("chosen, model, data", product(SETS, MODELS, DATA))
def test_another_block_is_another_grid_where_there_is_one_grid(chosen, model, data):
    found = differences((chosen, model, data, 4), (chosen, model, data, 8))
    own = {"improved": {"corruption.block_size", "objective.path_k"}, "paper": set()}
    assert found == NAMES | own[chosen]


@pytest.mark.parametrize("chosen, data, block", product(SETS, DATA, BLOCKS))
def test_another_model_is_another_model_and_the_room_that_it_takes(chosen, data, block):
    found = differences((chosen, "1.7b", data, block), (chosen, "4b", data, block))
    assert found == NAMES | {"model.source", "batch.tokens_per_batch", "distributed.strategy"}


@pytest.mark.parametrize("chosen, model, block", product(SETS, MODELS, BLOCKS))
def test_other_data_are_thirty_epochs_of_another_length(chosen, model, block):
    assert differences((chosen, model, "math", block), (chosen, model, "code", block)) == NAMES | {"optim.steps"}


@pytest.mark.parametrize("model, data, block", product(MODELS, DATA, BLOCKS))
def test_the_sets_differ_in_what_is_hidden_and_on_which_grid(model, data, block):
    found = differences(("paper", model, data, block), ("improved", model, data, block))
    one_grid = {"corruption.block_size", "objective.path_k"} if block == 4 else set()  # the paper trains in blocks of 8
    assert found == {"out", "corruption.mask_order", "data.keep_unfinished"} | one_grid


@every_recipe
def test_values_are_the_papers(recipe):
    """Of design and public configuration (`ddo_sdar_full_self.yaml`), written out here once more."""
    chosen, _, _, block = recipe
    found = load_recipe(file_of(recipe))
    assert found.objective.options | {"path_k": 0} == {"alpha": 0.5, "beta": 0.1, "path_weight": 0.2, "path_k": 0}
    optim = found.optim
    assert (optim.lr, optim.betas, optim.weight_decay, optim.clip_norm) == (1e-5, (0.9, 0.999), 0.01, 1.0)
    assert (optim.warmup_steps, optim.final_lr_share, optim.examples_per_step) == (20, 0.1, 256)
    assert (found.reference.refresh_every, found.reference.temperature) == (10, 0.0)
    hidden = found.corruption
    assert (hidden.ratios, hidden.ratio_power, hidden.random_token_share) == ((1.0, 0.75, 0.5, 0.25), 8.0, 0.1)
    grid = 8 if chosen == "paper" else block
    assert (hidden.block_size, found.objective.options["path_k"]) == (grid, grid // 2)
    assert hidden.mask_order == ("reverse" if chosen == "paper" else "trajectory")


# --- the heads ---


@every_recipe
def test_heads_name_the_recipes_own_files(recipe):
    chosen, _, data, block = recipe
    found, name = load_recipe(file_of(recipe)), name_of(recipe)
    assert (found.data.trajectories, found.out) == (f"runs/sdar/rollouts/{name}", f"runs/sdar/{chosen}/{name}")
    rollout = options_of(recipe, "rollout")
    assert (rollout["model"], str(rollout["out"])) == (found.model.source, found.data.trajectories)
    assert (rollout["task"], rollout["block_size"], rollout["steps_per_block"]) == (TASK_OF[data], block, block)
    assert (rollout["temperature"], rollout["rule"], rollout["max_new_tokens"]) == (0.1, "low_confidence_static", 1024)
    assert rollout["task"] in TASKS
    assert str(options_of(recipe, "train")["recipe"]) == f"recipes/sdar/{chosen}/{name}.yaml"
    measured = options_of(recipe, "eval")
    assert (measured["model"], measured["block_size"]) == (f"{found.out}/model", block)
    assert str(measured["out"]) == f"runs/sdar/eval/{chosen}-{name}"
    steps = [each for each in (1, 2, 4, 8) if each <= block]
    assert [int(each) for each in measured["tokens_per_step"].split(",")] == steps
    assert set(measured["benchmark"].split(",")) <= set(TASKS)
    assert f"Paper's cells, SDAR-{recipe[1].upper()}, block {block}: " in head_of(recipe)


def figures_of(recipe):
    """Hours and GiB as the head says them, of one GPU and of eight."""
    loaded = load_recipe(file_of(recipe))
    one, eight = (examine(loaded, Cluster(GPUS["h200"], count), "real") for count in (1, 8))
    assert one.fits
    assert eight.fits
    gib = [found.largest.memory.total / 2**30 for found in (one, eight)]
    return (
        f"On 1 H200: {one.seconds / 3600:.1f} h, {gib[0]:.0f} GiB of its memory, "
        f"{sum(disk(one.largest).values()) / 2**30:.0f} GiB of disk; "
        f"on 8: {eight.seconds / 3600:.2f} h, {gib[1]:.0f} GiB of each (t3d doctor --lengths real)."
    )


@every_recipe
def test_heads_say_what_the_doctor_says(recipe):
    assert figures_of(recipe) in head_of(recipe).splitlines()


@every_recipe
def test_the_table_says_what_the_heads_say(recipe):
    rows = [line.split("|")[1:-1] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]
    assert len(rows) == len(RECIPES)
    chosen, model, data, block = recipe
    path = f"{chosen}/{name_of(recipe)}.yaml"
    (row,) = [[cell.strip() for cell in row] for row in rows if f"]({path})" in row[0]]
    figures = re.findall(r"[\d.]+(?= h| GiB)", head_of(recipe))
    sources = {"math": "MATH train", "code": "PrimeIntellect"}
    assert row[1:9] == [f"SDAR-{model.upper()}-Chat", sources[data], str(block), *figures]


# --- run ---


def questions_of(data):
    """Rows in the form of the hub's."""
    if data == "math":
        return [{"question": f"What is {n} + 1?", "ground_truth_answer": str(n + 1)} for n in range(NUM_PROMPTS)]
    tests = {"test_method": "stdio", "test_input": ["1"], "test_output": ["1"]}
    return [{"question": f"Print what is read, {n} times.", **tests} for n in range(NUM_PROMPTS)]


def tiny_teacher(seed):
    """Random, but for its stop token, which is likely enough to end most answers."""
    model = random_model(SHAPES, TOKENIZER, seed)
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 5
    return model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A working folder in which the models' hub names are folders, and their rollouts are there."""
    folder = tmp_path_factory.mktemp("sdar")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for seed, model in enumerate(MODELS):
            save_model(tiny_teacher(seed), Path(f"JetLM/SDAR-{model.upper()}-Chat"), TOKENIZER)
        for data in DATA:
            Path(f"{data}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions_of(data)))
        for model, data, block in product(MODELS, DATA, BLOCKS):
            asked = commands_of(("paper", model, data, block))["rollout"]
            assert asked == commands_of(("improved", model, data, block))["rollout"]  # both learn from the same
            assert run(["rollout", *asked, "--data", f"{data}.jsonl", *ROLLOUT_OVERRIDES]) == 0
        yield folder


@every_recipe
def test_two_steps_of_a_tiny_model(recipe, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    overrides = [f"{key}={value}" for key, value in TRAIN_OVERRIDES.items()]
    assert run(["train", str(file_of(recipe)), *overrides]) == 0
    asked, out = load_recipe(file_of(recipe)), Path(load_recipe(file_of(recipe)).out)
    stored, written = flat(load_recipe(out / "recipe.yaml").model_dump()), flat(asked.model_dump())
    changed = {key for key in written if stored[key] != written[key]}
    assert changed <= TRAIN_OVERRIDES.keys() | {"precision"}  # which is left to the device
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in metrics] == [1, 2]
    assert all(math.isfinite(each["loss"]) for each in metrics)
    assert json.loads((out / "outcome.json").read_text())["step"] == 2
    before, after = (load_model(each, device="cpu") for each in (asked.model.source, out / "model"))
    assert any(not torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("model, data, block", product(MODELS, DATA, BLOCKS))
def test_rollouts_are_full_step_in_their_blocks(model, data, block, workplace):
    """Each token in a step of its own; and enough answers are finished for the set that learns from no others."""
    rows = list(read(workplace / load_recipe(file_of(("paper", model, data, block))).data.trajectories))
    assert len(rows) == NUM_PROMPTS
    assert all(len(set(row.reveal_step)) == len(row.reveal_step) for row in rows)
    assert all(len(row.response_ids) <= TOKENS for row in rows)
    assert sum(row.finish_reason == "stop" for row in rows) >= NUM_EXAMPLES


@pytest.mark.parametrize("model", MODELS)
def test_rounds_of_a_tiny_model(model, workplace, monkeypatch):
    """Of random models no answers agree, so that all are kept."""
    monkeypatch.chdir(workplace)
    file = FOLDER / f"rounds-{model}.yaml"
    asked = load_recipe(file)
    assert len(asked.rounds) * asked.optim.steps == 940  # as many as the paper's
    rollout = {"data": "math.jsonl", "max_new_tokens": TOKENS}
    overrides = {**TRAIN_OVERRIDES, "every_round.keep": "all", "every_round.agree_with": "self"}
    overrides |= {f"every_round.rollout.{key}": value for key, value in rollout.items()}
    assert run(["train", str(file), *(f"{key}={value}" for key, value in overrides.items())]) == 0
    out = Path(asked.out)
    ended = [json.loads((folder / "training" / "outcome.json").read_text()) for folder in sorted(out.glob("round-*"))]
    assert [each["step"] for each in ended] == [2] * 5
    before, after = (load_model(each, device="cpu") for each in (asked.model.source, out / "model"))
    assert any(not torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


# --- at their true shapes ---


@pytest.fixture
def bench():
    """bench/recipes.py."""
    spec = importlib.util.spec_from_file_location("bench_recipes", FOLDER.parent.parent / "bench" / "recipes.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_the_bench_goes_on_where_its_budget_ended(bench, monkeypatch, tmp_path, capsys):
    assert len(bench.trials("true")) == len(RECIPES)
    out = tmp_path / "results.json"
    monkeypatch.setattr(bench, "SHORTEST_ANSWER", 4)
    monkeypatch.setattr(bench, "LONGEST_ANSWER", 12)
    command = ["recipes.py", "--shape", "tiny", "--only", "1.7b-math-block4", "--examples", "2", "--out", str(out)]
    for budget, done, code in ((1e-3, 1, 1), (600, 2, 0)):  # the first one is always begun
        monkeypatch.setattr(sys, "argv", [*command, "--budget", str(budget)])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == code
        found = json.loads(out.read_text())["recipes"]
        assert len(found) == done
    assert set(found) == {"improved/1.7b-math-block4", "paper/1.7b-math-block4"}
    said = capsys.readouterr().out
    assert "not done: paper/1.7b-math-block4" in said
    assert said.count('improved/1.7b-math-block4: {"first_seconds"') == 1  # not done twice
    monkeypatch.setattr(sys, "argv", [*command, "--examples", "4"])
    with pytest.raises(SystemExit, match=r"holds results of .*'examples_per_step': 2.*choose another --out"):
        bench.main()
    assert json.loads(out.read_text())["recipes"] == found


def test_the_bench_predicts_what_it_measures(bench, monkeypatch):
    """The doctor's figures of the first step, not of the whole recipe."""
    monkeypatch.setattr(bench, "device_name", lambda device: "NVIDIA H200")
    trial = next(each for each in bench.trials("true") if each.name == "paper/1.7b-math-block4")
    config = bench.config_of(trial.shape)
    assert not config.tie_word_embeddings
    few, many = ([random_row(str(index), 100, 200, seed=index) for index in range(count)] for count in (32, 64))
    found = []
    for rows in (few, many):
        optim = trial.recipe.optim.model_copy(update={"steps": 2, "examples_per_step": len(rows)})
        recipe = trial.recipe.model_copy(update={"optim": optim})
        found.append(bench.prediction(recipe, trial.shape, config, rows, torch.device("cpu")))
    assert found[1]["seconds"] == pytest.approx(2 * found[0]["seconds"], rel=0.1)

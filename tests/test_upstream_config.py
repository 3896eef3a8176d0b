"""A training config of the public T3D code becomes the recipe that one would write by hand."""

import shlex

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.cli import run
from t3d.config import load_recipe
from t3d.errors import RequestError
from t3d.interop.upstream.recipe import convert_config
from t3d.interop.upstream.settings import Settings

SHIPPED = """
wandb: {entity: your_entity, project: "your_project", resume: false, run_id: null}
experiment:
    project: "ddo_sdar_full_self" # need to be same of this file name
    start_from_scratch: True
    num_node: 1
    save_every_steps: 256
    max_grad_norm: 1.0
    gradient_clipping: True
model: {pretrained_model: "JetLM/SDAR-4B-Chat", optimized_name: "optimized", random_ratio: 0.1}
dataset: {optimization_data: "SDAR-4B-Chat-MATH_train_renamed", data_type: "math"}
training:
    gradient_checkpointing_enable: True
    gradient_accumulation_steps: 32
    batch_size_lm: 1
    mixed_precision: "bf16"
    enable_tf32: True
    seed: 10086
    num_train_epochs: 30
    max_grad_norm: 1.0
    method: "semi-ar"
    mask_strategy: "trace"
    block_size: 8
    post_num: 2
    max_gen_length: 1024
    max_prompt_len: 512
    target_temp: 0.0
    reference_temp: 0.0
    alpha: 0.5
    beta: 0.1
    path_k_steps: 4
    lambda_path: 0.2
    mask_ratios: [1.0, 0.75, 0.5, 0.25]
    mask_ratio_exponent: 8.0
    multi_round: True
    round_interval: 10
optimizer:
    name: adamw
    params: {learning_rate: 1e-5, scale_lr: False, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, epsilon: 1e-8}
lr_scheduler:
    scheduler: "cosine"
    params:
        learning_rate: ${optimizer.params.learning_rate}
        warmup_steps: 20
        min_lr_scale: 0.1
"""
"""The keys and values of its configs/ddo_sdar_full_self.yaml."""
BY_HAND = """
model: {source: JetLM/SDAR-4B-Chat}
objective: {name: t3d, alpha: 0.5, beta: 0.1, path_weight: 0.2, path_k: 4}
data: {trajectories: runs/math, keep_unfinished: true}
optim: {steps: 720, examples_per_step: 256, lr: 1.0e-5, weight_decay: 0.01, warmup_steps: 20}  # 30 x ceil(6000 / 256)
corruption: {block_size: 8, mask_order: reverse}
reference: {refresh_every: 10}
checkpoint: {every_steps: 256}
tracking: {to: [wandb], project: ddo_sdar_full_self}
precision: bf16
seed: 10086
out: runs/ddo_sdar_full_self
"""


@pytest.fixture
def shipped(tmp_path):
    file = tmp_path / "ddo.yaml"
    file.write_text(SHIPPED)
    return file


def by_hand(folder):
    file = folder / "by-hand.yaml"
    file.write_text(BY_HAND)
    return load_recipe(file)


def test_the_shipped_config_becomes_the_recipe_written_by_hand(tmp_path, shipped):
    done = convert_config(shipped, tmp_path / "out.yaml", trajectories="runs/math", num_rows=6000)
    assert load_recipe(tmp_path / "out.yaml") == done.recipe == by_hand(tmp_path)


def test_improved_takes_our_order_and_finished_answers(tmp_path, shipped):
    done = convert_config(shipped, tmp_path / "out.yaml", trajectories="runs/math", num_rows=6000, improved=True)
    theirs = by_hand(tmp_path).model_dump()
    ours = done.recipe.model_dump()
    assert ours.pop("corruption") == {**theirs.pop("corruption"), "mask_order": "trajectory"}
    assert ours.pop("data") == {**theirs.pop("data"), "keep_unfinished": False}
    assert ours == theirs


def test_every_key_is_kept_or_remarked_upon(tmp_path, shipped, capsys):
    """Remove a key, and either the recipe changes, or the file's head no longer speaks of it."""
    assert run(["convert", "upstream-config", str(shipped), "--out", str(tmp_path / "out.yaml"), "--rows", "6000"]) == 0
    printed, text = capsys.readouterr().out, (tmp_path / "out.yaml").read_text()
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    assert set(printed.splitlines()[:-1]) <= set(comments)
    assert "no key of the public code" not in text
    whole = yaml.safe_load(SHIPPED)
    same_as_default = {"max_grad_norm", "method", "mask_strategy", "reference_temp", "batch_size_lm", "alpha", "beta"}
    same_as_default |= {"block_size", "path_weight"}
    for group in ("experiment", "model", "dataset", "training"):
        for key in whole[group].keys() - same_as_default - {"pretrained_model"}:
            name = f"{group}.{key}"
            file = tmp_path / "less.yaml"
            file.write_text(yaml.safe_dump({**whole, group: {k: v for k, v in whole[group].items() if k != key}}))
            (tmp_path / "less-out.yaml").unlink(missing_ok=True)
            convert_config(file, tmp_path / "less-out.yaml", num_rows=6000)
            assert (tmp_path / "less-out.yaml").read_text().splitlines()[1:] != text.splitlines()[1:], name


def test_epochs_need_the_number_of_rows(tmp_path, shipped):
    done = convert_config(shipped, tmp_path / "out.yaml")
    assert done.recipe.optim.steps == 200
    assert any("number of rows is unknown" in str(each) for each in done.remarks)
    assert done.recipe.data.trajectories == "runs/SDAR-4B-Chat-MATH_train_renamed"
    two = convert_config(shipped, tmp_path / "two.yaml", num_rows=100, num_gpus=2).recipe.optim
    assert (two.examples_per_step, two.steps) == (64, 60)  # 32 on each of 2; 2 steps an epoch


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("training.mask_strategy=random", "corruption.mask_order", "random"),
        ("training.multi_round=false", "reference.refresh_every", 0),
        ("training.gradient_checkpointing_enable=false", "compute.checkpoint_layers", 0),
        ("training.mixed_precision='no'", "precision", "tf32"),
        ("experiment.gradient_clipping=false", "optim.clip_norm", 1e9),
        ("experiment.checkpoints_total_limit=5", "checkpoint.keep", 5),
        ("optimizer.params.learning_rate=2e-6", "optim.lr", 2e-6),
        ("training.mask_ratios=0.5", "corruption.ratios", (0.5,)),
        ("model.pretrained_model=${dataset.data_type}/x", "model.source", "math/x"),
    ],
)
def test_overrides_as_its_command_line_takes_them(tmp_path, shipped, override, field, value):
    found = convert_config(shipped, tmp_path / "out.yaml", [override]).recipe
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.alpha=a", "training.alpha: must be a number"),
        ("training.alpha=-1", "alpha"),
        ("training.num_train_epochs=1.5", "training.num_train_epochs: must be a whole number"),
        ("training.multi_round=3", "training.multi_round: must be true or false"),
        ("training.method=trace", "training.method: must be semi-ar"),
        ("training.mask_strategy=other", "must be trace or random"),
        ("optimizer.name=lion", "optimizer.name: must be adamw"),
        ("optimizer.params.learning_rate=-1", "optim.lr"),
        ("model.pretrained_model=???", "model.pretrained_model is missing"),
        ("training.mask_ratios=[2]", "corruption"),
        ("training.mask_ratios=[true, 0.5]", "training.mask_ratios: must be a list of numbers"),
    ],
)
def test_what_no_recipe_can_say_is_refused_in_one_line(tmp_path, shipped, change, message):
    with pytest.raises(RequestError, match=r"ddo\.yaml") as refused:
        convert_config(shipped, tmp_path / "out.yaml", [change])
    assert message in str(refused.value)
    assert not (tmp_path / "out.yaml").exists()


def test_nothing_is_run_to_find_a_value(tmp_path, shipped, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    overrides = ["experiment.project=${oc.env:SECRET}", "training.seed=${training.seed}", "training.beta=${a}${b}"]
    done = convert_config(shipped, tmp_path / "out.yaml", overrides)
    assert "s3cret" not in (tmp_path / "out.yaml").read_text()
    remarked = {each.key for each in done.remarks if "nothing is run" in each.why}
    assert remarked == {"experiment.project", "training.seed", "training.beta"}
    assert done.recipe.seed == 0


DECODED = "block_size: 4, temperature: 0.1, top_p: 1.0, top_k: 0, max_token: 2000, denoising_steps_per_block: 2"
SAMPLED = "--temperature 0.1 --top-k 0 --top-p 1.0 --max-new-tokens 2000"
DYNAMIC = "remasking_strategy: low_confidence_dynamic, dynamic_threshold: 0.8"
STATIC = "--rule low_confidence_static"
STAGES = {
    f"rollout: {{{DECODED}}}": f"t3d rollout --block-size 4 --steps-per-block 2 {STATIC} {SAMPLED}",
    f"rollout: {{{DECODED}, {DYNAMIC}}}": (
        f"t3d rollout --block-size 4 --steps-per-block 2 --rule low_confidence_dynamic --threshold 0.8 {SAMPLED}"
    ),
    f"execute: {{num_chunk: 64}}\nrollout: {{{DECODED}}}": (
        f"t3d eval --block-size 4 --tokens-per-step 2 --threshold '' {STATIC} {SAMPLED}"
    ),
    f"execute: {{num_chunk: 64}}\nrollout: {{{DECODED}, {DYNAMIC}}}": (
        f"t3d eval --block-size 4 --tokens-per-step '' --threshold 0.8 {SAMPLED}"
    ),
}


@pytest.mark.parametrize("config", STAGES)
def test_configs_of_other_stages_say_which_command_they_are(tmp_path, capsys, config):
    """One that there is, with options that it has: nothing is wrong with it but the device added here."""
    file = tmp_path / "stage.yaml"
    file.write_text(config)
    with pytest.raises(RequestError) as refused:
        convert_config(file, tmp_path / "out.yaml")
    command = STAGES[config]
    assert f"commands here: {command} (docs" in str(refused.value)
    _, stage, *options = shlex.split(command)
    about = ["--task" if stage == "rollout" else "--benchmark", "story", "--model", "story-mini", "--device", "none"]
    assert run([stage, *options, *about, "--limit", "1", "--out", str(tmp_path / "out")]) == 2
    assert "device 'none' is unknown" in capsys.readouterr().err


def test_a_file_without_known_keys_is_no_config(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    with pytest.raises(RequestError, match="no keys model and training"):
        convert_config(file, tmp_path / "out.yaml")


def test_an_existing_recipe_is_left_alone(tmp_path, shipped):
    (tmp_path / "out.yaml").write_text("mine")
    assert run(["convert", "upstream-config", str(shipped), "--out", str(tmp_path / "out.yaml")]) == 2
    assert (tmp_path / "out.yaml").read_text() == "mine"


def test_converting_models_goes_on_to_work(tmp_path, capsys):
    assert run(["convert"]) == 2
    assert "--from-ar SOURCE --out DIR" in capsys.readouterr().err


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUE |= st.lists(VALUE, max_size=3) | st.sampled_from(
    ["${a.b}", "${training.seed}", "???", "1e-5", "\n# x: y", "\x1b"]
)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_value_gives_a_recipe_that_loads_or_a_refusal(tmp_path_factory, data):
    fields = yaml.safe_load(SHIPPED)
    for _ in range(data.draw(st.integers(1, 3))):
        group = data.draw(st.sampled_from(sorted(fields)))
        if isinstance(fields[group], dict):
            fields[group][data.draw(st.sampled_from(sorted(fields[group])))] = data.draw(VALUE)
    folder = tmp_path_factory.mktemp("configs")
    (folder / "c.yaml").write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    words = ["convert", "upstream-config", str(folder / "c.yaml"), "--out", str(folder / "out.yaml"), "--rows", "1000"]
    code = run(words)
    assert code in (0, 2)
    assert (folder / "out.yaml").exists() == (code == 0)
    if code == 0:
        assert load_recipe(folder / "out.yaml").model is not None


def test_references_are_followed_and_circles_are_not(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("a: {b: 1, c: '${a.b}', d: '${a.c}', e: 'x${a.d}y', f: '${a.g}', g: '${a.f}'}")
    found = Settings.load(file)
    assert (found.whole("a.c"), found.whole("a.d"), found.text("a.e")) == (1, 1, "x1y")
    assert {each.key for each in found.remarks} == {"a.f", "a.g"}


def test_unknown_keys_are_named(tmp_path, shipped):
    done = convert_config(shipped, tmp_path / "out.yaml", ["training.new_idea=7"])
    assert "training.new_idea = 7: not kept: no key of the public code that we know" in map(str, done.remarks)

"""Every switch of an ablation can be reached from a recipe, and training follows it."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import json

import pytest
from training_runs import inputs, metrics_of, recipe_of, refusal_of  # noqa: F401

from t3d.config import load_recipe
from t3d.errors import RequestError
from t3d.training import train

SWITCHES = {
    "t3d": [
        "objective.path_weight=0",
        "objective.path_weight=1",
        "objective.path_k=1",
        "objective.beta=1",
        "objective.alpha=0",
        "reference.refresh_every=0",
        "reference.refresh_every=1",
        "reference.temperature=1",
        "corruption.mask_order=reverse",
        "corruption.mask_order=random",
        "corruption.random_token_share=0",
        "corruption.ratios=[0.5]",
        "corruption.ratio_power=-8",
        "corruption.final_ratio_power=-8",
        "corruption.block_size=2",
        "corruption.block_size=8",
    ],
    "trajectory_ce": ["corruption.mask_order=random", "corruption.block_size=8"],
    "redi": ["corruption.random_token_share=0.5", "corruption.block_size=2"],
    "dparallel": ["objective.entropy_weight=0.5", "objective.entropy_temperature=1"],
    "d3llm": [
        "objective.entropy_weight=0.5",
        "objective.entropy_temperature=1",
        "corruption.rho_min=0.5",
        "corruption.rho_max=0.4",
        "corruption.mask_order=random",
    ],
    "tad": [
        "objective.delta=1",
        "objective.kl_weight=0",
        "corruption.mask_order=random",
        "corruption.ratio_power=8",
    ],
}


@pytest.fixture(scope="module")
def numbers_of(inputs, tmp_path_factory):
    """(objective, overrides) -> the metrics of three steps; each run is made once."""
    made = {}

    def run(name, *overrides):
        if (name, overrides) not in made:
            folder = tmp_path_factory.mktemp("run")
            optim = {"steps": 3, "examples_per_step": 20, "lr": 1e-2, "warmup_steps": 0}
            groups = {"reference": {"refresh_every": 2}, "corruption": {"ratio_power": 0}, "batch": {}}
            recipe = recipe_of(inputs, folder / "out", objective={"name": name}, optim=optim, **groups)
            (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
            train(load_recipe(folder / "recipe.yaml", overrides))
            made[name, overrides] = metrics_of(folder / "out")
        return made[name, overrides]

    return run


@pytest.mark.parametrize("name, override", [(name, each) for name, them in SWITCHES.items() for each in them])
def test_training_follows_the_switch(name, override, numbers_of):
    plain, switched = numbers_of(name), numbers_of(name, override)
    assert len(plain) == len(switched) == 3
    assert [line["grad_norm"] for line in plain] != pytest.approx([line["grad_norm"] for line in switched], rel=1e-6)


def test_a_curriculum_begins_as_the_run_without_one(numbers_of):
    plain, switched = numbers_of("t3d"), numbers_of("t3d", "corruption.final_ratio_power=-8")
    assert switched[0] == plain[0]
    assert switched[2] != plain[2]


@pytest.mark.parametrize(
    "corruption, said",
    [
        ({"rho_min": 0.9}, "corruption: rho_min 0.9 must not exceed rho_max 0.8"),
        ({"rho_max": 0}, "corruption.rho_max"),
        ({"final_ratio_power": 1000}, "corruption.final_ratio_power"),
        ({"mask_order": "sideways"}, "corruption.mask_order"),
    ],
)
def test_a_wrong_switch_is_one_line(corruption, said, inputs, tmp_path):
    assert said in refusal_of(RequestError, lambda: recipe_of(inputs, tmp_path, corruption=corruption))

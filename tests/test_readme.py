"""What the README and the recipes say works as they say it."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from t3d.cli import app
from t3d.config import load_recipe, make_recipe
from t3d.config.study import load_study
from t3d.objectives import build_objective
from t3d.study.cells import Cell, recipe_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text()
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
STUDIES = [file for file in FILES if file.stem.startswith("study")]
RECIPES = [file for file in FILES if file not in STUDIES]


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_python_example_runs(capsys):
    code = blocks("python")[0]
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "#### 31" in said  # 21 - 4 + 14
    assert said.rstrip().endswith("stop")


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipe_example_is_valid(text):
    recipe = make_recipe(yaml.safe_load(text))
    build_objective(recipe.objective.name, **recipe.objective.options)


@pytest.mark.parametrize("text", blocks("yaml", TRAINING) + blocks("yaml", EVALUATION))
def test_parts_of_recipes_in_the_docs_are_valid(text):
    part = yaml.safe_load(text)
    whole = yaml.safe_load(blocks("yaml")[0])
    if "rounds" in part:
        del whole["data"]
    make_recipe({**whole, **part})


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_valid(file):
    recipe = load_recipe(file)
    build_objective(recipe.objective.name, **recipe.objective.options)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_are_valid(file):
    study = load_study(file)
    for name in study.variants:
        recipe = recipe_of(study, Cell(name, study.learning_rates[0], study.seeds[0]))
        build_objective(recipe.objective.name, **recipe.objective.options)


def test_every_command_that_the_readme_names_exists():
    named = set(re.findall(r"\bt3d (?!import)([a-z]+(?:-[a-z]+)*)\b", README))
    known = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    assert known <= named
    assert named <= known


def test_make_targets_of_the_readme_exist():
    for target in set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_files_that_the_readme_names_exist():
    for path in set(re.findall(r"\((docs/[\w./-]+)\)|`((?:bench|tests|t3d)/[\w./-]+)`", README + EVALUATION)):
        assert (ROOT / next(filter(None, path))).exists()

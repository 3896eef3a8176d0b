"""The demo with small numbers: every promised file is there, and the report has both models and all rounds."""

import json
from pathlib import Path

import pytest

from t3d import demo
from t3d.cli import run
from t3d.config import load_recipe, make_recipe
from t3d.evaluation import read_result
from t3d.models import load_model
from t3d.trajectories import count, read_meta

ROOT = Path(__file__).parent.parent


@pytest.fixture
def small(monkeypatch):
    """Seconds in place of minutes."""
    monkeypatch.setattr(demo, "NUM_PROBLEMS", 4)
    monkeypatch.setattr(demo, "NUM_WATCHED", 4)
    monkeypatch.setattr(demo, "NUM_ROLLOUTS", 16)
    monkeypatch.setattr(demo, "ROUNDS", (4, 2))
    monkeypatch.setattr(demo, "OPTIM", {"steps": 2, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 1})


def test_demo(small, tmp_path, capfd):
    out = tmp_path / "new" / "demo"
    assert run(["demo", "--out", str(out), "--seed", "3"]) == 0
    said, progress = capfd.readouterr()
    for name, what in demo._contents("training"):
        assert (out / name).exists(), what
        assert name in said
    report = (out / "report.md").read_text()
    for name in ("teacher", "student"):
        result = read_result(out / f"{name}.json")
        assert [each.tokens_per_step for each in result.settings] == [1, 2, 4]
        assert all(each.num_problems == 4 for each in result.settings)
        assert report.count(f"\n| {name} |") == 3
    assert "(accuracy.png)" in report
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rounds = [out / "training" / f"round-{number}" for number in (1, 2)]
    assert [count(each / "trajectories") for each in rounds] == [16, 16]
    assert [read_meta(each / "trajectories").steps_per_block for each in rounds] == [4, 2]
    assert read_meta(rounds[0] / "trajectories").model == demo.TEACHER
    kept = count(rounds[1] / "kept")
    assert "| 1 | teacher | 1 | 16 of 16 |" in report
    assert f"| 2 | student | 2 | {kept} of 16 |" in report
    assert json.loads((out / "training" / "recipe.json").read_text())["seed"] == 3
    load_model(out / "training" / "model", device="cpu")
    assert "at 4 tokens per step" in said
    assert "roll out: 16/16" in progress
    assert "train: 2/2" in progress
    assert read_result(out / "teacher.json").model_fingerprint != read_result(out / "student.json").model_fingerprint

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(["demo", "--out", str(out)]) == 2  # never over an earlier one
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_recipe_of_the_demo_is_the_one_that_made_the_shipped_student(tmp_path):
    shipped = load_recipe(ROOT / "recipes" / "story" / "rounds-mini.yaml")
    made = make_recipe(demo.demo_recipe(tmp_path, seed=shipped.seed))
    left_out = {"out", "evaluation"}
    assert made.model_dump(exclude=left_out) == shipped.model_dump(exclude=left_out)

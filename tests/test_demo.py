"""The demo with small numbers: every promised file is there, and the report has both models."""

import json

import pytest

from t3d import demo
from t3d.cli import run
from t3d.evaluation import read_result
from t3d.models import load_model
from t3d.trajectories import count, read_meta


@pytest.fixture
def small(monkeypatch):
    """Seconds in place of minutes."""
    monkeypatch.setattr(demo, "NUM_PROBLEMS", 4)
    monkeypatch.setattr(demo, "NUM_ROLLOUTS", 32)
    monkeypatch.setattr(demo, "OPTIM", {"steps": 2, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 1})


def test_demo(small, tmp_path, capfd):
    out = tmp_path / "new" / "demo"
    assert run(["demo", "--out", str(out), "--seed", "3"]) == 0
    said, progress = capfd.readouterr()
    for name, what in demo._contents("training", "trajectories"):
        assert (out / name).exists(), what
        assert name in said
    report = (out / "report.md").read_text()
    for name in ("teacher", "student"):
        result = read_result(out / f"{name}.json")
        assert [each.tokens_per_step for each in result.settings] == [1, 2, 4]
        assert all(each.num_problems == 4 for each in result.settings)
        assert report.count(f"| {name} |") == 3
    assert "(accuracy.png)" in report
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert count(out / "trajectories") == 32
    meta = read_meta(out / "trajectories")
    assert (meta.model, meta.seed) == (demo.TEACHER, 3)
    assert json.loads((out / "training" / "recipe.json").read_text())["seed"] == 3
    assert (out / "training" / "metrics.jsonl").read_text().count("\n") >= 1
    load_model(out / "training" / "model", device="cpu")
    assert "at 4 tokens per step" in said
    assert "roll out: 32/32" in progress
    assert "train: 2/2" in progress
    assert read_result(out / "teacher.json").model_fingerprint != read_result(out / "student.json").model_fingerprint

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(["demo", "--out", str(out)]) == 2  # never over an earlier one
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

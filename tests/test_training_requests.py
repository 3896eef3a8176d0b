"""What people ask of a training run by mistake, and what a machine does to it: each is one clear line."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import inputs, recipe_of, refusal_of  # noqa: F401

from t3d.config import make_recipe
from t3d.errors import RequestError, WorkError
from t3d.training import Trainer, device
from t3d.training.rounds import run as rounds_run
from t3d.training.run.folder import OUTCOME_FILE, MetricsLog, steps_of_finished

FIELDS = {
    "model": {"source": "m"},
    "objective": {"name": "t3d"},
    "data": {"trajectories": "d"},
    "optim": {"steps": 3},
    "out": "o",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "t3d"}, "recipe: objective: must be a group of keys"),
        ({"model": {"source": "m", "adapter": "lora"}}, "recipe: model.adapter: must be a group of keys"),
        ({"data": "rollouts"}, "recipe: data: must be a group of keys"),
        ({"rounds": 5}, "recipe: rounds: must be a list"),
        ({"tracking": {"to": "wandb"}}, "recipe: tracking.to: must be a list, such as [a, b]"),
        ({"out": False}, "recipe: out: must be text; quote"),
        ({"data": None}, "recipe: give either data"),
        ({"optim": {"steps": 3, "betas": [0.9, 1.5]}}, "recipe: optim.betas.1: Input should be less than 1"),
        ({"optim": {"steps": 3, "betas": [-0.1, 0.9]}}, "recipe: optim.betas.0: Input should be greater than"),
        ({"corruption": {"ratio_power": -1000}}, "recipe: corruption.ratio_power: Input should be greater than"),
        ({"corruption": {"ratio_power": float("nan")}}, "recipe: corruption.ratio_power: "),
        ({"seed": 2**63}, "recipe: seed: Input should be less than"),
    ],
)
def test_a_wrong_value_is_named_in_the_words_of_a_recipe(change, said):
    assert refusal_of(RequestError, make_recipe, {**FIELDS, **change}).startswith(said)


def test_a_run_has_the_cpu_where_there_is_no_cuda(monkeypatch):
    """Left to itself accelerate would take an Apple or Intel device, which nothing else of a run expects."""
    asked = []

    def accelerator(**options):
        asked.append(options["cpu"])
        return SimpleNamespace(device=torch.device("cpu"))

    monkeypatch.setattr(device, "Accelerator", accelerator)
    monkeypatch.setattr(device, "as_device", lambda name: torch.device(name or "cpu"))
    device.prepare_device(make_recipe(FIELDS))
    device.prepare_device(make_recipe({**FIELDS, "device": "cuda"}))
    assert asked == [True, False]


def test_a_full_disk_under_the_metrics_is_one_line_and_keeps_those_before(tmp_path, monkeypatch):
    closed = []
    trackers = SimpleNamespace(log=lambda step, metrics: None, close=lambda: closed.append(True))
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, trackers)
    log.write(1, {"loss": 2.0})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        said = refusal_of(WorkError, log.write, 2, {"loss": 1.0})
        log.close()  # what stopped the run is the news: closing adds none
    assert said.startswith(f"{tmp_path / 'metrics.jsonl'}: No space left on device; ")
    assert closed == [True]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 2.0}
    ]


def test_a_finished_run_without_checkpoints_is_not_trained_anew(inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", optim__steps=2, checkpoint={}, tracking={"to": []})
    Trainer(recipe).run()
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = refusal_of(RequestError, Trainer, recipe, True)
    assert said == f"out {tmp_path / 'run'}: this run is finished; {tmp_path / 'run' / 'model'} is its student"
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    # of a round, whose record a kill may have come before, nothing is left to do
    assert rounds_run._run_training(recipe) == steps_of_finished(tmp_path / "run") == 2
    # one that did not end begins anew: there is nothing to lose
    (tmp_path / "run" / OUTCOME_FILE).unlink()
    assert Trainer(recipe, resume=True).finished_steps == 0

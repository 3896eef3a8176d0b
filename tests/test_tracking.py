"""Trackers: each hears what metrics.jsonl holds, under one name for all parts of a run; none is worth the run."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    inputs,  # noqa: F401
    metrics_of,
    recipe_of,
    refusal_of,
)

from t3d.config import TrackingConfig
from t3d.errors import RequestError
from t3d.training import train
from t3d.training.learner import Learner
from t3d.training.run.tracking import Trackers, check_trackers


class FakeRun:
    """What `init` of wandb and trackio returns."""

    def __init__(self, settings, breaks_at=None):
        self.settings, self.lines, self.is_finished, self._breaks_at = settings, [], False, breaks_at

    def log(self, values, step=None):
        if step == self._breaks_at:
            raise ConnectionError("the server is\naway")
        self.lines.append({"step": step, **values})

    def finish(self):
        self.is_finished = True


@pytest.fixture
def fake(monkeypatch):
    """Call it with a package's name: a module in its place, whose runs are listed in `runs`."""

    def install(name, breaks_at=None):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)
        module.runs = []

        def init(**settings):
            if breaks_at == "init":
                raise RuntimeError("not logged in")
            module.runs.append(FakeRun(settings, breaks_at))
            return module.runs[-1]

        module.init = init
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


def timeless(lines):
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def tracked(*names):
    return {"to": list(names), "project": "few-step"}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_hears_what_the_metrics_file_holds(name, fake, inputs, tmp_path):
    module = fake(name)
    recipe = recipe_of(inputs, tmp_path / "small-run", optim__steps=4, tracking=tracked(name))
    train(recipe)
    (run,) = module.runs
    assert timeless(run.lines) == metrics_of(tmp_path / "small-run")
    assert run.is_finished
    assert run.settings["project"] == "few-step"
    assert run.settings["name"] == "small-run"
    assert run.settings["config"]["optim"]["lr"] == recipe.optim.lr
    assert not (tmp_path / "small-run" / "tensorboard").exists()  # it was not named


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_the_same_record(name, fake, inputs, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    step = Learner.step

    def killed(self, batches, number):
        if number == 6:
            raise Killed
        return step(self, batches, number)

    module = fake(name)
    recipe = recipe_of(inputs, tmp_path / "run", tracking=tracked(name))
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", killed)
        with pytest.raises(Killed):
            train(recipe)
    train(recipe, resume=True)
    train(recipe_of(inputs, tmp_path / "other" / "run", tracking=tracked(name), optim__steps=1))
    first, second, other = module.runs
    assert first.is_finished  # what it has is sent even when the run dies
    assert [line["step"] for line in second.lines] == [5, 6, 7, 8, 9, 10, 11, 12]
    assert (first.settings["name"], second.settings["name"]) == ("run", "run")
    assert second.settings["resume"] == "allow"
    if name == "wandb":
        assert first.settings["id"] == second.settings["id"] != other.settings["id"]
    else:  # it knows runs by name, so that a new one must say that it is new
        assert (first.settings["resume"], other.settings["resume"]) == ("never", "never")


def test_tensorboard_hides_what_a_killed_part_wrote_beyond_its_checkpoint(tmp_path):
    tracking = TrackingConfig()
    for first_step, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0, 4: 40.0})):
        trackers = Trackers(tracking, tmp_path, {}, first_step)
        for step, value in values.items():
            trackers.log(step, {"loss": value, "lr": step / 8})
        trackers.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [(event.step, event.value) for event in board.Scalars("lr")] == [(step, step / 8) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("breaks_at", ["init", 3])
def test_a_tracker_that_fails_is_left_out_with_one_warning(breaks_at, fake, inputs, tmp_path, caplog):
    broken, whole = fake("wandb", breaks_at), fake("trackio")
    recipe = recipe_of(inputs, tmp_path / "run", optim__steps=5, tracking=tracked("wandb", "trackio"))
    with caplog.at_level(logging.WARNING):
        train(recipe)
    (warning,) = [record.getMessage() for record in caplog.records if "tracking.to" in record.getMessage()]
    assert "wandb" in warning
    assert "\n" not in warning
    assert len(metrics_of(tmp_path / "run")) == len(whole.runs[0].lines) == 5
    assert [line["step"] for run in broken.runs for line in run.lines] == ([] if breaks_at == "init" else [1, 2])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_missing_is_refused_before_anything_runs(name, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # importing it fails, installed or not
    recipe = recipe_of(inputs, tmp_path / "run", tracking=tracked("tensorboard", name))
    message = refusal_of(RequestError, train, recipe)
    assert f"pip install {name}" in message
    assert not (tmp_path / "run").exists()


def test_only_named_packages_are_imported(monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    check_trackers(TrackingConfig())
    check_trackers(TrackingConfig(to=()))


def test_no_tracker_at_all(inputs, tmp_path):
    train(recipe_of(inputs, tmp_path / "run", optim__steps=2, tracking={"to": []}))
    assert len(metrics_of(tmp_path / "run")) == 2
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_id_of_wandb_outlives_the_process(fake, inputs, tmp_path):
    module = fake("wandb")
    train(recipe_of(inputs, tmp_path / "run", optim__steps=1, tracking=tracked("wandb")))
    stored = json.loads((tmp_path / "run" / "wandb.json").read_text())
    assert stored == {"id": module.runs[0].settings["id"]}

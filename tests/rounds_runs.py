"""Runs of rounds that several test files share: what two runs must have in common, and how one is killed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Killed, metrics_of

from t3d import trajectories
from t3d.engine import Engine
from t3d.training import train
from t3d.training.rounds.record import RoundsFile


def rows_of(folder):
    return list(trajectories.read(folder))


def weights_of(model):
    return load_file(model / "model.safetensors")


def assert_same_weights(left, right):
    left, right = weights_of(left), weights_of(right)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def figures_of(out):
    """rounds.json less its times."""
    content = json.loads((out / "rounds.json").read_text())["finished"]
    return {part: {key: value for key, value in each.items() if key != "seconds"} for part, each in content.items()}


def assert_same_run(left, right):
    """Records, rows, metrics and weights."""
    assert figures_of(left) == figures_of(right)
    for part in figures_of(right):
        if part.endswith(("trajectories", "full-step", "kept", "completed")):
            assert rows_of(left / part) == rows_of(right / part)
        elif part.endswith("training"):
            assert metrics_of(left / part) == metrics_of(right / part)
            assert_same_weights(left / part / "model", right / part / "model")
    assert_same_weights(left / "model", right / "model")


def kill_at(monkeypatch, part, written):
    """The run dies when a part is finished: before that is written down, or right after."""
    add = RoundsFile.add

    def killed(self, name, figures):
        if name == part and not written:
            raise Killed
        add(self, name, figures)
        if name == part:
            raise Killed

    monkeypatch.setattr(RoundsFile, "add", killed)


def kill_in_rollout(monkeypatch, answers):
    """The run dies when so many answers of one rollout are there."""
    generate = Engine.generate

    def killed(self, prompts, decoding, seeds, on_finish):
        def count(place, generation):
            on_finish(place, generation)
            if place == answers:
                raise Killed

        return generate(self, prompts, decoding, seeds, count)

    monkeypatch.setattr(Engine, "generate", killed)


def kill_in(monkeypatch, function):
    """The run dies when it calls a function."""

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(function, killed)


def kill_in_copy(monkeypatch):
    """The run dies when a folder is copied in part."""

    def killed(source, target, **_):
        shutil.copy(source / "config.json", target)
        raise Killed

    monkeypatch.setattr("shutil.copytree", killed)


def kill_again_and_again(recipe, monkeypatch, kills):
    """Each kill hits what the one before left."""
    for number, (kill, *arguments) in enumerate(kills):
        with monkeypatch.context() as patched:
            kill(patched, *arguments)
            with pytest.raises(Killed):
                train(recipe, resume=number > 0)
    train(recipe, resume=True)

"""A run in practice: checkpoints in the background, interruptions, evaluation on the way, and what the folder tells."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torchao.optim import AdamW8bit
from training_runs import (
    TOKENIZER,
    Killed,
    assert_same_state,
    inputs,  # noqa: F401
    metrics_of,
    recipe_of,
    refusal_of,
    start_processes,
    write_story_inputs,
)

from t3d.cli import run as run_command
from t3d.config import load_recipe
from t3d.errors import RequestError, WorkError
from t3d.models import load_model, model_fingerprint
from t3d.training import Trainer, train
from t3d.training.learner import Learner, LearnerState
from t3d.training.run.checkpoint import Checkpoints, on_host
from t3d.training.run.folder import describe_outcome, other_run
from t3d.training.run.live import RunPanel, duration, sparkline
from t3d.training.run.watching import Best, Watcher, replace_folder
from t3d.training.student import Student
from t3d.types import Verdict

CHECKPOINTED = {"every_steps": 4, "keep": 5}


def do_in_step(monkeypatch, number, action):
    """`action()` is called after the arithmetic of optimizer step `number` (1-based), once."""
    original, done = Learner.step, []

    def watched(self, batches, step):
        metrics = original(self, batches, step)
        if step == number and not done:
            done.append(step)
            action()
        return metrics

    monkeypatch.setattr(Learner, "step", watched)


def die():
    raise Killed


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The recipe of an uninterrupted run that wrote its checkpoints in the foreground."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = recipe_of(inputs, out, checkpoint={**CHECKPOINTED, "asynchronous": False})
    train(recipe)
    return recipe


# Checkpoints in the background


def test_background_checkpoints_are_those_of_the_foreground(finished, inputs, tmp_path, monkeypatch):
    """Each write waits until training has gone on by two steps, or is over, before it looks at its tensors."""
    write, stepped = Checkpoints.write, threading.Event()
    order = []

    def slow(self, step, state, progress):
        stepped.clear()
        stepped.wait(timeout=2)
        order.append(step)
        write(self, step, state, progress)

    original = Learner.step

    def counted(self, batches, number):
        metrics = original(self, batches, number)
        if number % 4 == 2:
            stepped.set()
        return metrics

    monkeypatch.setattr(Checkpoints, "write", slow)
    monkeypatch.setattr(Learner, "step", counted)
    train(recipe_of(inputs, tmp_path / "run", checkpoint=CHECKPOINTED, optim__steps=10))
    assert order == [4, 8]
    whole = recipe_of(inputs, tmp_path / "whole", checkpoint={**CHECKPOINTED, "asynchronous": False}, optim__steps=10)
    monkeypatch.undo()
    train(whole)
    for name in ("step-000004", "step-000008"):
        assert_same_state(tmp_path / "run" / "checkpoints" / name, Path(whole.out) / "checkpoints" / name)


def test_a_host_copy_shares_nothing_and_equals(inputs, tmp_path):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run"))
    trainer.run()
    live = trainer.learner.state()
    copied = on_host(live)
    kept = {name: weight.clone() for name, weight in live.weights.items()}
    assert copied.optimizer["param_groups"] == live.optimizer["param_groups"]
    moments = {key: value["exp_avg"].clone() for key, value in live.optimizer["state"].items()}
    with torch.no_grad():
        for weight in live.weights.values():
            weight.add_(1.0)
        for value in live.optimizer["state"].values():
            value["exp_avg"].zero_()
        for weight in live.reference.values():
            weight.zero_()
    assert all(torch.equal(copied.weights[name], kept[name]) for name in kept)
    assert all(torch.equal(copied.optimizer["state"][key]["exp_avg"], moments[key]) for key in moments)
    assert any(weight.any() for weight in copied.reference.values())


def test_a_host_copy_of_eight_bit_moments():
    """They are tensors behind the face of one, which torch itself cannot clone."""
    weight = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = AdamW8bit([weight])
    weight.grad = torch.randn_like(weight)
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
        copied = on_host(LearnerState({}, {}, optimizer.state_dict())).optimizer["state"][0]["exp_avg"]
        moment = optimizer.state_dict()["state"][0]["exp_avg"]
        before = moment.dequantize().clone()
        assert before.any()
        assert type(copied) is type(moment)
        moment.codes.zero_()
        moment.scale.zero_()
        assert torch.equal(copied.dequantize(), before)


def save_and_die(checkpoints, state):
    with checkpoints:
        checkpoints.save(12, state)
        raise Killed


def test_a_write_that_fails_in_the_background_shows_at_the_next_save_or_at_the_end(inputs, tmp_path, monkeypatch):
    state = Trainer(recipe_of(inputs, tmp_path / "run")).learner.state()

    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path / "c", keep=2, asynchronous=True)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        checkpoints.save(4, state)
        assert "step-000004" in refusal_of(WorkError, checkpoints.save, 8, state)
    checkpoints.save(8, state)  # said once
    checkpoints.wait()
    assert checkpoints.newest().name == "step-000008"
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(WorkError, match="step-000012"), checkpoints:
            checkpoints.save(12, state)
        with pytest.raises(Killed):  # what stopped the run is not hidden
            save_and_die(checkpoints, state)
    assert checkpoints.newest().name == "step-000008"


def test_a_checkpoint_under_way_is_finished_when_the_run_dies(inputs, tmp_path, monkeypatch):
    write = Checkpoints.write

    def slow(*arguments):
        time.sleep(0.2)
        write(*arguments)

    monkeypatch.setattr(Checkpoints, "write", slow)
    do_in_step(monkeypatch, 5, die)
    with pytest.raises(Killed):
        train(recipe_of(inputs, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]


def test_checkpoints_by_the_clock(inputs, tmp_path, monkeypatch):
    """Every step takes a minute by the watch on the wall."""
    now = [0.0]
    monkeypatch.setattr("t3d.training.trainer.time.monotonic", lambda: now[0])
    original = Learner.step

    def minute(self, batches, number):
        now[0] += 60
        return original(self, batches, number)

    monkeypatch.setattr(Learner, "step", minute)
    train(recipe_of(inputs, tmp_path / "run", checkpoint={"every_minutes": 5, "keep": 9}))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000005", "step-000010"]
    train(recipe_of(inputs, tmp_path / "both", checkpoint={"every_minutes": 5, "every_steps": 4, "keep": 9}))
    names = sorted(path.name for path in (tmp_path / "both" / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000008", "step-000012"]  # never five minutes without one


def test_steps_of_seven_digits_are_in_order(inputs, tmp_path):
    state = Trainer(recipe_of(inputs, tmp_path / "run")).learner.state()
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (999_998, 999_999, 1_000_000):
        checkpoints.save(step, state)
    assert checkpoints.newest().name == "step-1000000"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-1000000", "step-999999"]


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_finishes_its_step_and_goes_on_from_there(number, finished, inputs, tmp_path, monkeypatch):
    recipe = recipe_of(inputs, tmp_path / "run", checkpoint=CHECKPOINTED)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        do_in_step(patch, 6, lambda: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt, match="step-000006"):
            train(recipe)
    assert signal.getsignal(number) is before
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    trainer = Trainer(recipe, resume=True)
    assert trainer.finished_steps == 6
    trainer.run()
    assert metrics_of(tmp_path / "run") == metrics_of(Path(finished.out))
    last = Path("checkpoints", "step-000012")
    assert_same_state(tmp_path / "run" / last, Path(finished.out) / last)


def test_a_second_signal_stops_at_once(inputs, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    do_in_step(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(inputs, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]


def test_what_a_cluster_says_twice_is_one_request(inputs, tmp_path, monkeypatch):
    """It signals every process, and a launcher among them passes on what it was told."""

    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    do_in_step(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt, match="step-000006"):
        train(recipe_of(inputs, tmp_path / "run"))


def test_without_checkpoints_none_is_written_and_it_says_so(inputs, tmp_path, monkeypatch):
    do_in_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="no checkpoint"):
        train(recipe_of(inputs, tmp_path / "run", checkpoint={"every_minutes": 0}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_in_another_thread_leaves_signals_alone(inputs, tmp_path):
    thread = threading.Thread(target=train, args=(recipe_of(inputs, tmp_path / "run", optim__steps=1),))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_resume_without_a_checkpoint_says_so(finished, inputs, tmp_path, monkeypatch, caplog):
    recipe = recipe_of(inputs, tmp_path / "run", checkpoint=CHECKPOINTED)
    with monkeypatch.context() as patch:
        do_in_step(patch, 2, die)
        with pytest.raises(Killed):
            train(recipe)
    assert metrics_of(tmp_path / "run") != []
    train(recipe, resume=True)
    assert "holds no checkpoint to go on from; starting from step 0" in caplog.text
    assert metrics_of(tmp_path / "run") == metrics_of(Path(finished.out))


def test_seconds_go_on_where_they_stopped(inputs, tmp_path, monkeypatch):
    recipe = recipe_of(inputs, tmp_path / "run", checkpoint=CHECKPOINTED)
    with monkeypatch.context() as patch:
        do_in_step(patch, 4, lambda: time.sleep(0.3))
        do_in_step(patch, 5, die)
        with pytest.raises(Killed):
            train(recipe)
    train(recipe, resume=True)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[4] > 0.3


# Evaluation while training


@pytest.fixture(scope="module")
def evaluated_inputs(tmp_path_factory):
    """As `inputs`, with a model that has room for the story's prompts."""
    return write_story_inputs(tmp_path_factory.mktemp("evaluated"))


EVALUATION = {"every_steps": 3, "limit": 4, "tokens_per_step": [1, 4], "max_new_tokens": 8}


def evaluated_recipe(inputs, out, **changes):
    return recipe_of(inputs, out, **{"evaluation": EVALUATION, "checkpoint": CHECKPOINTED, **changes})


def grade_by_chance(monkeypatch):
    """A right answer is one whose text has an even number of characters: a function of the weights."""

    def judge(text, answer):
        return Verdict(len(text) % 2 == 0, "by chance")

    monkeypatch.setattr("t3d.tasks.story.task.judge", judge)


def evaluations_of(out):
    return [line for line in metrics_of(out) if "accuracy@4" in line]


@pytest.fixture(scope="module")
def evaluated(evaluated_inputs, tmp_path_factory):
    """The folder of an uninterrupted run that evaluates on the way."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        grade_by_chance(patch)
        train(evaluated_recipe(evaluated_inputs, out))
    return out


def test_evaluation_changes_nothing_of_the_training(evaluated, evaluated_inputs, tmp_path):
    train(evaluated_recipe(evaluated_inputs, tmp_path / "run", evaluation=None))
    assert metrics_of(tmp_path / "run") == [line for line in metrics_of(evaluated) if "loss" in line]
    for name in ("step-000004", "step-000012"):
        assert_same_state(tmp_path / "run" / "checkpoints" / name, evaluated / "checkpoints" / name)


def test_evaluation_is_due_at_the_start_by_steps_and_at_the_end(evaluated, evaluated_inputs, tmp_path, monkeypatch):
    assert [line["step"] for line in evaluations_of(evaluated)] == [0, 3, 6, 9, 12]
    grade_by_chance(monkeypatch)
    evaluation = {**EVALUATION, "every_steps": 5, "at_start": False}
    train(evaluated_recipe(evaluated_inputs, tmp_path / "run", evaluation=evaluation))
    assert [line["step"] for line in evaluations_of(tmp_path / "run")] == [5, 10, 12]
    both = {line["step"]: line for line in evaluations_of(evaluated)}
    assert evaluations_of(tmp_path / "run")[-1] == both[12]


def test_the_best_student_is_on_disk(evaluated, evaluated_inputs):
    """It is the first of those with the highest accuracy, and its model is that step's."""
    lines = evaluations_of(evaluated)
    best = json.loads((evaluated / "best" / "best.json").read_text())
    top = max(line["accuracy@4"] for line in lines)
    assert best["step"] == next(line["step"] for line in lines if line["accuracy@4"] == top)
    assert (best["accuracy"], best["tokens_per_step"]) == (top, 4)
    assert len({line["accuracy@4"] for line in lines}) > 1  # or this test shows nothing
    names = {"accuracy@1", "accuracy@4", "tokens_per_forward@1", "tokens_per_forward@4"}
    assert set(best["metrics"]) == names < set(lines[0])
    assert not list(evaluated.glob(".best*"))


def scripted(trainer, monkeypatch, accuracies):
    """Evaluations of this run give, by step, these accuracies at both settings."""

    def measure(student, reporter):
        accuracy = accuracies[trainer.finished_steps]
        return SimpleNamespace(settings=2 * [SimpleNamespace(accuracy=accuracy, tokens_per_forward=1.0)])

    monkeypatch.setattr(trainer.watcher, "_measure", measure)


def fingerprints_by_step(trainer):
    """Step -> the student's fingerprint, filled in while it trains."""
    seen, original = {0: model_fingerprint(trainer.model)}, trainer.learner.step

    def watched(batches, number):
        metrics = original(batches, number)
        seen[number] = model_fingerprint(trainer.model)
        return metrics

    trainer.learner.step = watched
    return seen


def test_the_earliest_of_equals_is_best_and_patience_ends_the_run(evaluated_inputs, tmp_path, monkeypatch):
    evaluation = {**EVALUATION, "every_steps": 2, "patience": 2}
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run", evaluation=evaluation)
    trainer = Trainer(recipe)
    scripted(trainer, monkeypatch, {0: 0.25, 2: 0.25, 4: 0.5, 6: 0.5, 8: 0.25})
    seen = fingerprints_by_step(trainer)
    trainer.run()
    assert (trainer.finished_steps, trainer.stopped_early) == (8, True)
    assert model_fingerprint(load_model(tmp_path / "run" / "best", device="cpu")) == seen[4]
    assert model_fingerprint(load_model(tmp_path / "run" / "model", device="cpu")) == seen[8]
    line = describe_outcome(tmp_path / "run")
    assert "stopped early after 8 of 12 steps" in line
    assert "50.0% after step 4" in line
    again = Trainer(recipe, resume=True)
    assert again.is_over  # by the checkpoint of the step that it stopped after
    again.run()
    assert model_fingerprint(load_model(tmp_path / "run" / "model", device="cpu")) == seen[8]
    assert describe_outcome(tmp_path / "run") == line


@pytest.mark.parametrize("step", [2, 4, 7, 10])
def test_a_killed_run_with_evaluations_ends_as_an_uninterrupted_one(
    step, evaluated, evaluated_inputs, tmp_path, monkeypatch
):
    """Killed before any checkpoint; and after evaluations that no checkpoint has heard of."""
    grade_by_chance(monkeypatch)
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        do_in_step(patch, step, die)
        with pytest.raises(Killed):
            train(recipe)
    train(recipe, resume=True)
    assert metrics_of(tmp_path / "run") == metrics_of(evaluated)
    assert_same_run_folders(tmp_path / "run", evaluated)


def assert_same_run_folders(left, right):
    names = ("model/model.safetensors", "best/model.safetensors")
    for name in names:
        one, other = load_file(left / name), load_file(right / name)
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert (left / "best" / "best.json").read_text() == (right / "best" / "best.json").read_text()
    for path in (right / "checkpoints").iterdir():
        assert_same_state(left / "checkpoints" / path.name, path)
        stored = [json.loads((run / "checkpoints" / path.name / "state.json").read_text()) for run in (left, right)]
        assert stored[0]["progress"]["evaluated"] == stored[1]["progress"]["evaluated"]


def test_killed_between_an_evaluation_and_the_checkpoint_of_its_step(
    evaluated, evaluated_inputs, tmp_path, monkeypatch
):
    grade_by_chance(monkeypatch)
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_checkpoint", lambda self, report: die() if self.finished_steps == 12 else None)
        with pytest.raises(Killed):
            train(recipe)
    assert [line["step"] for line in evaluations_of(tmp_path / "run")] == [0, 3, 6, 9, 12]
    train(recipe, resume=True)
    assert metrics_of(tmp_path / "run") == metrics_of(evaluated)
    assert_same_run_folders(tmp_path / "run", evaluated)


def test_patience_counts_over_a_resume(evaluated_inputs, tmp_path, monkeypatch):
    """The best is found after the last checkpoint of the killed part; what comes before it does not count."""
    accuracies = {0: 0.0, 2: 0.5, 4: 0.25, 6: 0.75, 8: 0.5, 10: 0.25, 12: 0.0}
    evaluation = {**EVALUATION, "every_steps": 2, "patience": 2}
    runs = {}
    for name, killed in (("whole", False), ("killed", True)):
        recipe = evaluated_recipe(
            evaluated_inputs, tmp_path / name, evaluation=evaluation, checkpoint={"every_steps": 5, "keep": 9}
        )
        if killed:
            with monkeypatch.context() as patch:
                do_in_step(patch, 9, die)
                trainer = Trainer(recipe)
                scripted(trainer, patch, accuracies)
                with pytest.raises(Killed):
                    trainer.run()
        trainer = Trainer(recipe, resume=killed)
        scripted(trainer, monkeypatch, accuracies)
        trainer.run()
        runs[name] = (trainer.finished_steps, trainer.stopped_early, metrics_of(tmp_path / name), trainer.watcher.best)
    assert runs["killed"] == runs["whole"]
    assert runs["whole"][:2] == (10, True)


def test_an_interrupted_evaluation_is_done_again(evaluated, evaluated_inputs, tmp_path, monkeypatch):
    grade_by_chance(monkeypatch)
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run")
    advanced = []

    def advance(self, amount=1, **values):
        advanced.append(amount)
        if len(advanced) == 12:  # 2 x 4 answers an evaluation: in the second
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("t3d.training.run.live.Silent.advance", advance)
        with pytest.raises(KeyboardInterrupt, match="step-000003"):
            train(recipe)
    assert len(advanced) == 12
    assert [line["step"] for line in evaluations_of(tmp_path / "run")] == [0]
    train(recipe, resume=True)
    assert evaluations_of(tmp_path / "run") == evaluations_of(evaluated)
    assert (tmp_path / "run" / "best" / "best.json").read_text() == (evaluated / "best" / "best.json").read_text()


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(evaluated_inputs, tmp_path):
    """They train for real, with workers, and evaluate on the way: one does, the other waits."""
    batch = {"tokens_per_batch": 60, "num_workers": 1}
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run", optim__steps=100_000, batch=batch)
    processes = start_processes(recipe, tmp_path / "recipe.yaml", 2)
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        while not log.exists() or log.read_text().count("\n") < 6:
            assert [process.poll() for process in processes] == [None, None], processes[0].stdout.read()
            time.sleep(0.02)
        processes[1].terminate()
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [130, 130], "\n".join(outputs)
    steps = max(line["step"] for line in metrics_of(tmp_path / "run"))
    newest = tmp_path / "run" / "checkpoints" / f"step-{steps:06d}"
    assert json.loads((newest / "state.json").read_text())["progress"]["evaluated"] == list(range(0, steps + 1, 3))
    for output in outputs:
        assert "Traceback" not in output
        (complaint,) = [line for line in output.splitlines() if line.startswith("t3d: interrupted")]
        assert str(newest) in complaint


@pytest.mark.parametrize(
    "change, said",
    [
        ({"benchmark": "gsm9k"}, "gsm9k"),
        ({"split": "holdout"}, "holdout"),
        ({"benchmark": "jsonl", "data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"tokens_per_step": [3]}, "3 does not divide"),
        ({"max_new_tokens": 1000}, "256"),
    ],
)
def test_a_wrong_evaluation_is_refused_before_anything_runs(change, said, evaluated_inputs, tmp_path):
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run", evaluation={**EVALUATION, **change})
    message = refusal_of(RequestError, train, recipe)
    assert message.startswith("evaluation: ")
    assert said in message
    assert not (tmp_path / "run").exists()


def test_evaluation_puts_questions_as_the_recipe_does(evaluated_inputs, tmp_path):
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run", prompt={"style": "chat"})
    assert refusal_of(RequestError, train, recipe).startswith("evaluation: prompt style chat")


def test_programs_without_a_sandbox_are_refused_before_anything_runs(evaluated_inputs, tmp_path, monkeypatch):
    def find_isolation(name):
        raise RequestError("no sandbox here")

    data = tmp_path / "programs.jsonl"
    data.write_text(json.dumps({"question": "Add.", "tests": "assert add(1, 2) == 3"}) + "\n")
    evaluation = {**EVALUATION, "benchmark": "jsonl", "data": str(data), "split": "all"}
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run", evaluation=evaluation)
    monkeypatch.setattr("t3d.tasks.programs.grader.find_isolation", find_isolation)
    assert refusal_of(RequestError, train, recipe) == "evaluation: no sandbox here"
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_best_student_that_is_there(tmp_path):
    folder = tmp_path / "best"
    replace_folder(folder, lambda path: (path / "a").write_text("first"))

    def full(path):
        (path / "a").write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        replace_folder(folder, full)
    assert (folder / "a").read_text() == "first"
    replace_folder(folder, lambda path: (path / "a").write_text("second"))
    assert (folder / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_the_two_renames_loses_no_best_student(evaluated, evaluated_inputs, tmp_path, monkeypatch):
    replace, renames = os.replace, []

    def killed(source, target):
        renames.append(target)
        if len(renames) == 2:
            raise Killed
        replace(source, target)

    folder = tmp_path / "run" / "best"
    replace_folder(folder, lambda path: shutil.copytree(evaluated / "best", path, dirs_exist_ok=True))
    with monkeypatch.context() as patch:
        patch.setattr("t3d.training.run.watching.os.replace", killed)
        with pytest.raises(Killed):
            replace_folder(folder, lambda path: (path / "a").write_text("second"))
    assert not folder.exists()
    student = Student(load_model(evaluated_inputs / "model", device="cpu"))
    recipe = evaluated_recipe(evaluated_inputs, tmp_path / "run")
    watcher = Watcher(recipe.evaluation, recipe, student, TOKENIZER, folder)
    assert watcher.best == Best(**json.loads((evaluated / "best" / "best.json").read_text()))
    assert (folder / "model.safetensors").exists()


# The run folder


def test_the_recipe_of_a_run_can_be_run_again(finished, tmp_path):
    again = load_recipe(Path(finished.out, "recipe.yaml"), [f"out={tmp_path / 'again'}"])
    train(again)
    assert metrics_of(tmp_path / "again") == metrics_of(Path(finished.out))
    assert load_recipe(Path(finished.out, "recipe.yaml")).out == finished.out


def test_each_start_leaves_a_line(inputs, tmp_path, monkeypatch):
    recipe = recipe_of(inputs, tmp_path / "run", optim__steps=4)
    monkeypatch.setattr(sys, "argv", ["t3d", "train", "a recipe.yaml"])
    train(recipe)
    train(recipe, resume=True)
    first, second = map(json.loads, (tmp_path / "run" / "starts.jsonl").read_text().splitlines())
    assert (first["resume"], second["resume"]) == (False, True)
    assert (first["finished_steps"], second["finished_steps"]) == (0, 4)
    assert first["command"] == "t3d train 'a recipe.yaml'"
    assert {"t3d", "torch"} <= set(first["versions"])
    assert first["num_processes"] == 1
    assert first["device"].startswith("cpu")
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["step"], outcome["steps"], outcome["stopped_early"], outcome["best"]) == (4, 4, False, None)


def test_what_changes_no_result_may_change_in_a_resumed_run(finished, inputs):
    file = Path(finished.out, "recipe.json")
    free = {"log_every": 7, "batch": {"tokens_per_batch": 99}, "checkpoint": {"every_minutes": 1}, "device": None}
    free |= {"tracking": {"to": ["trackio"]}, "compute": {"checkpoint_layers": 1}, "precision": "fp32"}
    free |= {"distributed": {"strategy": "fsdp"}}
    assert other_run(file, recipe_of(inputs, "elsewhere", **free)) is None
    for change, key in (
        ({"seed": 1}, "seed"),
        ({"optim__lr": 0.5}, "optim.lr"),
        ({"evaluation": {"every_steps": 5}}, "evaluation"),
        ({"precision": "bf16"}, "precision"),
        ({"data__keep_unfinished": True}, "data.keep_unfinished"),
    ):
        assert other_run(file, recipe_of(inputs, "elsewhere", **{"precision": "fp32", **change})) == key


def test_a_run_from_before_a_key_had_its_default(finished, inputs, tmp_path):
    stored = json.loads(Path(finished.out, "recipe.json").read_text())
    new = ("compute", "distributed", "tracking", "evaluation")
    old = {key: value for key, value in stored.items() if key not in new}
    del old["checkpoint"]["asynchronous"], old["optim"]["optimizer"], old["model"]["adapter"]
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    same = recipe_of(inputs, "x", precision="fp32", checkpoint=CHECKPOINTED)
    assert other_run(tmp_path / "recipe.json", same) is None
    other = recipe_of(inputs, "x", precision="fp32", optim__optimizer="adamw_8bit")
    assert other_run(tmp_path / "recipe.json", other) == "optim.optimizer"


def test_metrics_hold_speeds(finished):
    for line in Path(finished.out, "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["tokens_per_second"] > values["examples_per_second"] > 0
        assert "mfu" not in values  # the CPU's peak is not known


# What a terminal shows


def panel_text(panel):
    console = Console(record=True, force_terminal=True, width=100, file=StringIO())
    console.print(panel.render())
    return console.export_text()


def test_the_panel_shows_what_it_was_told(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("t3d.training.run.live.time.monotonic", lambda: now[0])
    panel = RunPanel("t3d train  runs/small", total=400, done=100)
    assert "step 100 of 400" in panel_text(panel)
    panel.evaluating(100, 40).advance(7)
    assert "evaluating after step 100: 7 of 40 answers" in panel_text(panel)
    panel.evaluated(
        100, {"accuracy@1": 0.5, "accuracy@4": 0.25}, Best(50, 4, 0.375, {"accuracy@1": 0.5, "accuracy@4": 0.375})
    )
    for loss in (4.0, 3.0, 2.0):
        now[0] += 50
        panel.step()
        values = {"loss": loss, "ddo": 1.5, "agreement": 0.875, "tokens_per_second": 12345.6, "seconds": 9.0}
        panel.step({**values, "mfu": 0.4711, "memory_gib": 93.21, "examples_per_second": 1.5, "lr": 1e-5})
    text = panel_text(panel)
    for shown in ("step 106 of 400", "2:30 gone", "2:02:30 left", "87.5%", "12,346", "47.1%", "93.2 GiB", "1e-05"):
        assert shown in text
    for shown in ("evaluating", "seconds"):
        assert shown not in text
    assert "█" in text.splitlines()[3]
    (best,) = [line for line in text.splitlines() if "best" in line]
    assert "step 50" in best
    assert "37.5%" in best
    assert max(map(len, text.splitlines())) == 100


def test_sparkline_and_duration():
    assert sparkline(deque([0.0, 7.0])) == "▁█"
    assert sparkline(deque([float(each) for each in range(8)])) == "▁▂▃▄▅▆▇█"
    assert sparkline(deque([1.0, 1.0, 1.0])) == "▁▁▁"
    assert sparkline(deque([5.0])) == ""
    assert len(sparkline(deque(map(float, range(1000))), width=24)) == 24
    assert [duration(each) for each in (0.4, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_a_terminal_shows_the_panel_and_a_file_lines(evaluated_inputs, tmp_path, monkeypatch, capsys):
    grade_by_chance(monkeypatch)
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(evaluated_recipe(evaluated_inputs, tmp_path / "run", optim__steps=3).model_dump(mode="json"))
    )
    assert run_command(["train", str(tmp_path / "recipe.yaml")]) == 0
    said = capsys.readouterr()
    assert "train: 3/3 steps" in said.err
    assert "evaluation after step 3:  accuracy@1" in said.err
    assert f"{tmp_path}/run/model: the trained model; {tmp_path}/run/best: the best one" in said.out
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert run_command(["train", str(tmp_path / "recipe.yaml"), f"out={tmp_path}/other"]) == 0
    assert "step 3 of 3" in capsys.readouterr().err

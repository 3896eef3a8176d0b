"""The trainer on tiny models: it learns, resumes bit for bit, and refuses what cannot be in one line."""

# ruff: noqa: F811  the fixture `inputs` is imported by its name

import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from training_runs import (
    NUM_ROWS,
    TOKENIZER,
    Killed,
    assert_same_state,
    inputs,  # noqa: F401
    kill_in_step,
    meta,
    metrics_of,
    recipe_of,
    refusal_of,
    start_processes,
    trajectory,
)

from t3d import trajectories
from t3d.config import OptimConfig
from t3d.errors import RequestError, WorkError
from t3d.models import load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from t3d.objectives import OBJECTIVES
from t3d.training import Trainer, train
from t3d.training.data import Share, progress_at
from t3d.training.learner import Learner
from t3d.training.optimizers import learning_rate_share
from t3d.training.reference import CopyReference
from t3d.training.run.checkpoint import Checkpoints
from t3d.training.student import Student


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """(recipe, student) of an uninterrupted run."""
    recipe = recipe_of(inputs, tmp_path_factory.mktemp("runs") / "run")
    return recipe, train(recipe)


# Learning


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_goes_down(name, inputs, tmp_path):
    """The same few rows over and over, wholly hidden, so that only learning moves the loss."""
    recipe = recipe_of(
        inputs,
        tmp_path / "run",
        objective={"name": name},
        corruption={"ratios": [1.0], "rho_min": 1.0, "rho_max": 1.0, "random_token_share": 0},
        optim={"steps": 30, "examples_per_step": NUM_ROWS, "lr": 1e-2, "warmup_steps": 0},
        batch={"tokens_per_batch": 1000},
        reference__refresh_every=0,
        checkpoint={},
    )
    train(recipe)
    objective = OBJECTIVES[name]()
    # the term of entropy joins in as tokens become right, and raises the loss of a model that knew nothing
    falls = "loss" if objective.needs_entropy_at is None else "cross_entropy"
    losses = [line[falls] for line in metrics_of(tmp_path / "run")]
    assert len(losses) == 30
    if objective.hider in ("chance", "coin"):  # what is hidden varies
        assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    else:
        assert losses[-1] < 0.85 * losses[0]
    assert metrics_of(tmp_path / "run")[-1]["agreement"] > metrics_of(tmp_path / "run")[0]["agreement"]


def test_supervised_training_on_a_task_from_random_weights(inputs, tmp_path):
    shapes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    shapes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    recipe = recipe_of(
        inputs,
        tmp_path / "run",
        model={"init": shapes, "tokenizer": "story-tokenizer"},
        objective={"name": "sft"},
        data={"task": "story", "count": 5},
        optim__steps=2,
    )
    student = train(recipe)
    assert student.config.vocab_size == len(TOKENIZER)
    assert len(metrics_of(tmp_path / "run")) == 2


def test_saved_student_loads_with_the_same_logits(finished):
    recipe, student = finished
    loaded = load_model(Path(recipe.out, "model"), device="cpu")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, student(input_ids=ids).logits)
    assert model_fingerprint(loaded) == model_fingerprint(student)
    assert model_fingerprint(loaded) != model_fingerprint(load_model(recipe.model.source, device="cpu"))
    saved = load_tokenizer(Path(recipe.out, "model"))
    assert tokenizer_fingerprint(saved) == tokenizer_fingerprint(TOKENIZER)


def test_batches_and_workers_change_nothing(finished, inputs, tmp_path):
    """Other rows of tokens, more examples a pass, prepared by other processes: the same run up to rounding."""
    recipe, _ = finished
    train(recipe_of(inputs, tmp_path / "run", batch={"tokens_per_batch": 500, "row_tokens": 90, "num_workers": 1}))
    for left, right in zip(metrics_of(tmp_path / "run"), metrics_of(Path(recipe.out)), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["agreement"] == pytest.approx(right["agreement"], abs=1e-6)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_precisions_follow_each_other_in_one_process(inputs, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):
        out = tmp_path / f"{precision}{len(losses)}"
        train(recipe_of(inputs, out, precision=precision, optim__steps=2))
        losses[out.name] = metrics_of(out)[0]["loss"]
        stored = load_file(out / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}  # master weights
    assert losses["fp320"] == losses["fp322"]
    assert losses["bf161"] != losses["fp320"]
    assert losses["bf161"] == pytest.approx(losses["fp320"], rel=0.02)


# Resuming


@pytest.mark.parametrize("step", [2, 5, 7, 12])
def test_resumed_is_uninterrupted(step, finished, inputs, tmp_path, monkeypatch):
    """Killed before any checkpoint, right after one, between two, in the last step."""
    whole, out = Path(finished[0].out), tmp_path / "run"
    recipe = recipe_of(inputs, out)
    with monkeypatch.context() as patched:
        kill_in_step(patched, step)
        with pytest.raises(Killed):
            train(recipe)
    assert len(metrics_of(out)) == step - 1
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line that the kill cut short
    trainer = Trainer(recipe, resume=True)
    assert trainer.finished_steps == (step - 1) // 4 * 4
    trainer.run()
    assert metrics_of(out) == metrics_of(whole)
    for name in ("step-000004", "step-000008", "step-000012"):
        assert_same_state(out / "checkpoints" / name, whole / "checkpoints" / name)
    left, right = (load_file(run / "model" / "model.safetensors") for run in (out, whole))
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_a_finished_run_may_be_resumed(finished, tmp_path):
    recipe, student = finished
    copied = recipe.model_copy(update={"out": str(tmp_path / "run")})
    shutil.copytree(recipe.out, copied.out)
    assert model_fingerprint(train(copied, resume=True)) == model_fingerprint(student)
    assert metrics_of(tmp_path / "run") == metrics_of(Path(recipe.out))


def test_only_the_newest_checkpoints_are_kept(inputs, tmp_path):
    train(recipe_of(inputs, tmp_path / "run", checkpoint={"every_steps": 3, "keep": 2}))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000009", "step-000012"]


def test_a_half_written_checkpoint_is_never_taken(inputs, tmp_path, monkeypatch):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.newest() is None
    checkpoints.save(4, trainer.learner.state())

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("torch.save", killed)
        with pytest.raises(Killed):
            checkpoints.save(8, trainer.learner.state())
    assert (tmp_path / "checkpoints" / "step-000008.partial").exists()
    assert checkpoints.newest().name == "step-000004"
    checkpoints.save(8, trainer.learner.state())
    assert checkpoints.load(checkpoints.newest(), trainer.learner) == (8, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000008"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0\n!")])
def test_a_full_disk_is_one_line_and_leaves_earlier_checkpoints(error, inputs, tmp_path, monkeypatch):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    checkpoints.save(4, trainer.learner.state())

    def full(*_):
        raise error

    monkeypatch.setattr("torch.save", full)
    message = refusal_of(WorkError, checkpoints.save, 8, trainer.learner.state())
    assert "step-000008" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_a_torn_checkpoint_is_one_line(finished, tmp_path):
    recipe = finished[0].model_copy(update={"out": str(tmp_path / "run")})
    shutil.copytree(finished[0].out, recipe.out)
    (tmp_path / "run" / "checkpoints" / "step-000012" / "optimizer.pt").write_bytes(b"torn")
    assert "step-000012" in refusal_of(RequestError, train, recipe, True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_is_uninterrupted_with_every_objective(name, inputs, tmp_path, monkeypatch):
    """The noise of `d3llm` and of a curriculum depends on how far the run is; `tad` keeps its first teacher."""
    runs = {}
    for out in ("whole", "parts"):
        corruption = {"ratio_power": -3, "final_ratio_power": 3}
        runs[out] = recipe_of(inputs, tmp_path / out, objective={"name": name}, corruption=corruption, optim__steps=6)
    train(runs["whole"])
    with monkeypatch.context() as patched:
        kill_in_step(patched, 6)
        with pytest.raises(Killed):
            train(runs["parts"])
    train(runs["parts"], resume=True)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    left, right = (load_file(tmp_path / out / "model" / "model.safetensors") for out in runs)
    assert all(torch.equal(left[key], right[key]) for key in right)


# The reference


def test_reference_starts_as_the_teacher_and_follows_by_steps(inputs, tmp_path):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", optim__steps=23, reference__refresh_every=10))
    teacher = model_fingerprint(load_model(inputs / "model", device="cpu"))
    reference = trainer.learner.reference.model
    assert model_fingerprint(reference) == teacher
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    seen, original = {}, trainer.learner.step

    def watched(batches, number):
        metrics = original(batches, number)
        seen[number] = (model_fingerprint(reference), model_fingerprint(trainer.model))
        return metrics

    trainer.learner.step = watched
    trainer.run()
    for step, (judge, student) in seen.items():
        assert judge == (teacher if step < 10 else seen[step // 10 * 10][1])
        assert (judge == student) == (step % 10 == 0)


def test_reference_is_never_replaced_at_0(inputs, tmp_path):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", reference__refresh_every=0))
    before = model_fingerprint(trainer.learner.reference.model)
    trainer.run()
    assert model_fingerprint(trainer.learner.reference.model) == before
    assert model_fingerprint(trainer.model) != before


def test_a_teacher_is_never_replaced(inputs, tmp_path):
    """Whatever the recipe says: `tad` learns from the model that the run started from."""
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", objective={"name": "tad"}, reference__refresh_every=1))
    trainer.run()
    teacher = load_model(inputs / "model", device="cpu")
    assert model_fingerprint(trainer.learner.reference.model) == model_fingerprint(teacher)
    divergences = [line["far"] for line in metrics_of(tmp_path / "run")]
    assert divergences[0] == pytest.approx(0, abs=1e-6)  # the student is the teacher
    assert min(divergences[1:]) > 1e-6


def test_reference_shares_no_memory_with_the_student():
    student = Student(tiny_model())
    reference = CopyReference(student, torch.float64)
    before = model_fingerprint(reference.model)
    with torch.no_grad():
        student.model.lm_head.weight.add_(1.0)
    assert model_fingerprint(reference.model) == before
    reference.refresh()
    assert model_fingerprint(reference.model) == model_fingerprint(student.model)


def test_gaps_are_zero_while_the_reference_is_the_student(inputs, tmp_path):
    """In the step after each refresh, l_theta and l_ref are the same numbers."""
    train(recipe_of(inputs, tmp_path / "run"))  # refresh_every 5
    for line in metrics_of(tmp_path / "run"):
        assert (abs(line["real_gap"]) < 1e-6) == (line["step"] in (1, 6, 11))


# Learning rate


def test_learning_rate_by_hand():
    optim = OptimConfig(steps=12, warmup_steps=4, final_lr_share=0.1)
    assert [learning_rate_share(step, optim) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_share(4, optim) == 1.0
    assert learning_rate_share(8, optim) == pytest.approx(0.1 + 0.9 * 0.5)  # half way down
    assert learning_rate_share(6, optim) == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)  # a quarter
    assert learning_rate_share(12, optim) == pytest.approx(0.1)
    assert learning_rate_share(50, optim) == pytest.approx(0.1)
    assert learning_rate_share(0, OptimConfig(steps=3, warmup_steps=0)) == 1.0
    assert learning_rate_share(5, OptimConfig(steps=3, warmup_steps=10)) == 0.6


def test_logged_learning_rate_is_the_optimizers(finished):
    recipe = finished[0]
    for line in metrics_of(Path(recipe.out)):
        share = learning_rate_share(line["step"] - 1, recipe.optim)
        assert line["lr"] == pytest.approx(recipe.optim.lr * share, rel=1e-6)


def test_norm_weights_do_not_decay(inputs, tmp_path):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", optim__weight_decay=0.3))
    decayed, plain = trainer.learner.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {parameter.dim() for parameter in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(trainer.model.parameters()))


# Rows


def test_rows_that_ended_by_length_are_left_out_and_counted(inputs, tmp_path, caplog):
    rows = [trajectory(index, "length" if index in (1, 4) else "stop") for index in range(NUM_ROWS)]
    trajectories.write(tmp_path / "t", rows, meta())
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(recipe_of(inputs, tmp_path / "run", data__trajectories=str(tmp_path / "t")))
    assert "left out 2 of 10" in caplog.text
    assert rows_of(trainer) == sorted(f"p{index}/0" for index in range(NUM_ROWS) if index not in (1, 4))
    data = {"trajectories": str(tmp_path / "t"), "keep_unfinished": True}
    kept = Trainer(recipe_of(inputs, tmp_path / "other", data=data))
    assert len(rows_of(kept)) == NUM_ROWS


def rows_of(trainer):
    """Row ids of enough steps for every row to come up, each once, sorted."""
    steps = range(NUM_ROWS)
    return sorted({row_id for step in steps for batch in trainer._dataset[step] for row_id in batch.row_ids})


def test_each_epoch_holds_every_row_once_in_another_order_with_other_noise(inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", optim__examples_per_step=NUM_ROWS // 2, batch={"tokens_per_batch": 1})
    dataset = Trainer(recipe)._dataset
    epochs = []
    for epoch in range(3):
        batches = [batch for step in (2 * epoch, 2 * epoch + 1) for batch in dataset[step]]
        epochs.append({batch.row_ids[0]: batch.input_ids.tolist() for batch in batches})
        assert len(batches) == len(epochs[-1]) == NUM_ROWS
    assert epochs[0].keys() == epochs[1].keys() == epochs[2].keys()
    assert all(sum(one[row] != other[row] for row in one) >= 5 for one, other in pairwise(epochs))
    again = [dataset[5], dataset[0]]  # in any order
    assert [batch.row_ids for batch in again[1]] == [batch.row_ids for batch in dataset[0]]
    first_halves = {frozenset(batch.row_ids[0] for batch in dataset[2 * epoch]) for epoch in range(3)}
    assert len(first_halves) > 1


def shown_in(batches):
    """Row id -> what is shown of its response in each of the batches' noisy copies of it (one example a batch)."""
    shown = {}
    for batch in batches:
        (row_id,) = batch.row_ids
        shown.setdefault(row_id, []).append(set(batch.loss_index.tolist()))
    return shown


def test_a_mask_and_its_complement_are_of_one_step(inputs, tmp_path):
    """Four examples of two rows; all hidden places of a row together are its response."""
    recipe = recipe_of(
        inputs,
        tmp_path / "run",
        objective={"name": "dparallel"},
        corruption={"random_token_share": 0},
        batch={"tokens_per_batch": 1},
    )
    dataset = Trainer(recipe)._dataset
    lengths = {f"p{index}/0": len(trajectory(index).response_ids) for index in range(NUM_ROWS)}
    epoch = [shown_in(dataset[step]) for step in range(NUM_ROWS // 2)]
    assert sorted(row for step in epoch for row in step) == sorted(lengths)  # each row once, in one step
    for step in epoch:
        assert len(step) == 2
        for row, (mask, complement) in step.items():
            assert mask & complement == set()
            assert len(mask | complement) == lengths[row]
    assert shown_in(dataset[0]) != shown_in(dataset[NUM_ROWS // 2])  # other masks in the next epoch


@pytest.mark.parametrize("name", ["dparallel", "d3llm"])
def test_processes_share_the_examples_of_one(name, inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", objective={"name": name}, batch={"tokens_per_batch": 1})
    dataset = Trainer(recipe)._dataset

    def examples_of(share):
        dataset._share = share
        return sorted((batch.row_ids, batch.input_ids.tolist()) for batch in dataset[7])

    shares = [examples_of(Share(rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]  # as many batches each, or they would wait for each other
    held = [[example for example in share if example[0]] for share in shares]
    assert sorted(len(share) for share in held) == [1, 1, 2]
    assert sorted(example for share in held for example in share) == examples_of(Share())


def test_halves_of_a_row_are_not_parted(inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", objective={"name": "dparallel"}, optim__examples_per_step=5)
    assert "examples_per_step 5: must be even" in refusal_of(RequestError, train, recipe)
    assert not (tmp_path / "run").exists()


def test_progress_by_hand():
    assert [progress_at(step, 5) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert progress_at(0, 1) == 0.0


# Refusals


@pytest.mark.parametrize(
    "changes, said",
    [({"tokenizer_fingerprint": "0" * 16}, "tokenizer"), ({"mask_token_id": 7}, "mask id 7, the model's is 1")],
)
def test_trajectories_of_another_model_are_refused(changes, said, inputs, tmp_path):
    trajectories.write(tmp_path / "t", [trajectory(0)], meta(**changes))
    recipe = recipe_of(inputs, tmp_path / "run", data__trajectories=str(tmp_path / "t"))
    assert said in refusal_of(RequestError, train, recipe)
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_no_row_left_is_refused(inputs, tmp_path):
    trajectories.write(tmp_path / "t", [trajectory(0, "length")], meta())
    recipe = recipe_of(inputs, tmp_path / "run", data__trajectories=str(tmp_path / "t"))
    assert "no row left" in refusal_of(RequestError, train, recipe)


def test_out_that_holds_something_else_is_refused(inputs, tmp_path):
    (tmp_path / "letter.txt").write_text("keep me")
    assert "something else" in refusal_of(RequestError, train, recipe_of(inputs, tmp_path))
    assert "something else" in refusal_of(RequestError, train, recipe_of(inputs, tmp_path), True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    file = recipe_of(inputs, tmp_path / "letter.txt")
    assert "is a file" in refusal_of(RequestError, train, file)


def test_out_of_another_or_the_same_run_is_refused(finished, inputs):
    recipe, _ = finished
    assert "--resume" in refusal_of(RequestError, train, recipe)
    other = recipe_of(inputs, recipe.out, optim__lr=5.0)
    assert "optim.lr" in refusal_of(RequestError, train, other, True)


def test_out_with_a_torn_recipe_is_refused(inputs, tmp_path):
    (tmp_path / "recipe.json").write_text('{"model":')
    assert "recipe.json" in refusal_of(RequestError, train, recipe_of(inputs, tmp_path), True)


def test_an_objective_on_trajectories_does_not_take_a_task(inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", data={"task": "story"})
    assert "rollout" in refusal_of(RequestError, train, recipe)


@pytest.mark.parametrize("objective", [{"name": "t4d"}, {"name": "t3d", "lambda": 1}])
def test_an_unknown_objective_or_option_is_refused(objective, inputs, tmp_path):
    refusal_of(RequestError, train, recipe_of(inputs, tmp_path / "run", objective=objective))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_never_a_checkpoint(inputs, tmp_path, monkeypatch):
    """The loss of the step was fine; the update was not."""
    step = Learner.step

    def broken(self, batches, number):
        metrics = step(self, batches, number)
        if number == 8:
            next(iter(self.student.trainable().values())).data[0, 0] = float("nan")
        return metrics

    monkeypatch.setattr(Learner, "step", broken)
    message = refusal_of(WorkError, train, recipe_of(inputs, tmp_path / "run", log_every=100))
    assert message.startswith("weights after step 8 not finite")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]


# Processes


@pytest.mark.parametrize("name", ["t3d", "tad"])
def test_two_processes_are_one(name, finished, inputs, tmp_path):
    recipe = recipe_of(inputs, tmp_path / "run", objective={"name": name})
    alone = finished[0]
    if name != "t3d":
        alone = recipe_of(inputs, tmp_path / "alone", objective={"name": name})
        train(alone)
    processes = start_processes(recipe, tmp_path / "recipe.yaml", 2)
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    whole = Path(alone.out)
    for left, right in zip(metrics_of(tmp_path / "run"), metrics_of(whole), strict=True):
        assert left.keys() == right.keys()
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["agreement"] == pytest.approx(right["agreement"], abs=1e-6)
    together, alone = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", whole))
    assert together.keys() == alone.keys()
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=1e-6, rtol=1e-5)
    assert sum("train: 12/12" in output for output in outputs) == 1  # one of them reports


def test_more_processes_than_examples_are_refused(inputs, tmp_path):
    trainer = Trainer(recipe_of(inputs, tmp_path / "run"))

    class Three:
        num_processes, process_index = 5, 0

    trainer.accelerator = Three()
    assert "examples_per_step 4" in refusal_of(RequestError, trainer._load_data, trainer.model)

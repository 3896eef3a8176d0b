"""A loss or gradient that is not finite: no update is made of it, its rows are named, and what was good stays."""

import json
from dataclasses import replace

import pytest
import torch
from training_runs import assert_same_state, recipe_of, start_program, state_of, write_story_inputs

from t3d.errors import WorkError
from t3d.training import data, train
from t3d.training.finite import all_finite, describe_rows
from t3d.training.learner import Learner
from t3d.trajectories import read

BAD = "p3/0"
INFINITE, HUGE = float("inf"), 1e30
"""As the weight of a token: the first makes the loss infinite, the other the norm of the gradient only."""
SFT = {"name": "sft"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_story_inputs(tmp_path_factory.mktemp("inputs"))


def plant(monkeypatch, weight, rows=(BAD,)):
    """From now on the tokens of these rows weigh so much."""
    corrupt = data.corrupt

    def planted(row, *args, **kwargs):
        example = corrupt(row, *args, **kwargs)
        weights = example.weights * 0 + weight if row.row_id in rows else example.weights
        return replace(example, weights=weights)

    monkeypatch.setattr(data, "corrupt", planted)


def refused(recipe, **how):
    with pytest.raises(WorkError) as refusal:
        train(recipe, **how)
    return str(refusal.value)


def step_of(message):
    return int(message.removeprefix("step ").split(":")[0])


def checkpoint(out, step):
    return out / "checkpoints" / f"step-{step:06d}"


@pytest.mark.parametrize("every_steps", [1, 100])
def test_the_run_stops_before_the_update_and_keeps_the_step_before(every_steps, inputs, tmp_path, monkeypatch):
    kept = {"every_steps": every_steps, "keep": 20}
    train(recipe_of(inputs, tmp_path / "fine", objective=SFT, checkpoint={"every_steps": 1, "keep": 20}))
    plant(monkeypatch, INFINITE)
    message = refused(recipe_of(inputs, tmp_path / "run", objective=SFT, checkpoint=kept))
    number = step_of(message)
    assert f"loss, grad_norm not finite in {BAD} (1 of " in message
    assert "rows); nothing of it was taken over" in message
    assert f"the last good checkpoint is {checkpoint(tmp_path / 'run', number - 1)}" in message
    assert "on_nonfinite=skip" in message
    assert number > 1
    assert_same_state(checkpoint(tmp_path / "run", number - 1), checkpoint(tmp_path / "fine", number - 1))
    assert not checkpoint(tmp_path / "run", number).exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_gradient_that_is_not_finite_names_the_rows_of_the_step(inputs, tmp_path, monkeypatch):
    plant(monkeypatch, HUGE)
    message = refused(recipe_of(inputs, tmp_path / "run", objective=SFT))
    assert "grad_norm not finite though each row's own loss is finite; its rows: " in message
    assert "loss, grad_norm" not in message
    assert BAD in message


def test_a_skipped_step_changes_nothing_and_resumes_alike(inputs, tmp_path, monkeypatch, caplog):
    """Also the reference stays, although each step would refresh it."""
    plant(monkeypatch, INFINITE)
    original = Learner._batch_loss

    def weighed(self, scorer, batch, verdict):
        """The weights of the corruption count in `t3d` too."""
        loss, metrics = original(self, scorer, batch, verdict)
        return loss * torch.where(batch.tokens.weights.isinf().any(), torch.inf, 1.0), metrics

    monkeypatch.setattr(Learner, "_batch_loss", weighed)
    changes = {"checkpoint": {"every_steps": 1, "keep": 20}, "reference": {"refresh_every": 1}}
    stopped = recipe_of(inputs, tmp_path / "resumed", **changes)
    number = step_of(refused(stopped))
    skip = {"optim__on_nonfinite": "skip"}
    train(recipe_of(inputs, tmp_path / "resumed", **changes, **skip), resume=True)
    train(recipe_of(inputs, tmp_path / "whole", **changes, **skip))
    before, after = (checkpoint(tmp_path / "whole", step) for step in (number - 1, number))
    assert_same_state(before, after)
    assert_same_state(checkpoint(tmp_path / "whole", 12), checkpoint(tmp_path / "resumed", 12))
    assert all(torch.isfinite(each.float()).all() for each in state_of(checkpoint(tmp_path / "whole", 12)).values())
    warnings = [record.message for record in caplog.records if "going on without it" in record.message]
    assert all(f" in {BAD} (1 of " in message for message in warnings)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    left_out = json.loads((tmp_path / "whole" / "outcome.json").read_text())["left_out"]
    assert left_out == 12 - len(lines) > 0
    assert len(warnings) == 2 * left_out
    assert number not in [line["step"] for line in lines]
    assert lines[-1]["left_out"] == lines[-1]["step"] - len(lines)


def test_too_many_skipped_steps_in_a_row_stop_the_run(inputs, tmp_path, monkeypatch):
    plant(monkeypatch, INFINITE, rows=[f"{row.prompt_id}/{row.sample}" for row in read(inputs / "trajectories")])
    recipe = recipe_of(inputs, tmp_path / "run", objective=SFT, optim__on_nonfinite="skip", optim__max_skipped=2)
    message = refused(recipe)
    assert message.startswith("step 3: ")
    assert f"{BAD}, " in message
    assert "(3 of 3 rows)" in message  # one of them is there twice
    assert "2 steps before it were left out too (optim.max_skipped)" in message


@pytest.mark.parametrize("kept", [{"every_steps": 1}, {"every_steps": 0, "every_minutes": 0}])
@pytest.mark.parametrize("evaluated", [False, True])
def test_weights_that_are_not_finite_reach_no_file(kept, evaluated, inputs, tmp_path, monkeypatch):
    """Of a token that no row has, so that no loss can tell."""
    original = Learner.step

    def poisoned(self, batches, number):
        metrics = original(self, batches, number)
        if number == 12:
            with torch.no_grad():
                self.student.model.model.embed_tokens.weight[-1] = torch.nan
        return metrics

    monkeypatch.setattr(Learner, "step", poisoned)
    evaluation = {"every_steps": 12, "at_start": False, "limit": 1, "tokens_per_step": [4], "max_new_tokens": 4}
    recipe = recipe_of(
        inputs, tmp_path / "run", checkpoint=kept, evaluation=evaluation if evaluated else None, optim__steps=12
    )
    message = refused(recipe)
    assert message.startswith("weights after step 12 not finite; ")
    assert ("step-000011" in message) == bool(kept["every_steps"])
    for name in ("model", "best", "outcome.json", "checkpoints/step-000012"):
        assert not (tmp_path / "run" / name).exists()


PROGRAM = """
import sys
from _pytest.monkeypatch import MonkeyPatch
from test_nonfinite import INFINITE, plant
from t3d.cli import run
plant(MonkeyPatch(), INFINITE)
sys.exit(run(["train", sys.argv[1]]))
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_stop_alike_where_one_has_the_row(strategy, inputs, tmp_path):
    recipe = recipe_of(
        inputs, tmp_path / "run", objective=SFT, distributed={"strategy": strategy}, checkpoint={"every_steps": 100}
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    processes = start_program(PROGRAM, tmp_path / "recipe.json", 2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for output in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith("t3d: ")]
        assert f"not finite in {BAD} (1 of " in line
        assert f"the last good checkpoint is {checkpoint(tmp_path / 'run', step_of(line[5:]) - 1)}" in line


def test_what_is_finite():
    for value, finite in ((3e38, True), (float("nan"), False), (float("-inf"), False)):
        assert all_finite([torch.zeros(2, 2), torch.tensor([1.0, value, -2.0])]) == finite


def test_rows_in_words():
    rows = [f"row {number}" for number in range(20)]
    assert describe_rows(rows[:1], rows) == "in row 0 (1 of 20 rows)"
    assert describe_rows(rows, rows).startswith("in row 0, row 1, ")
    assert describe_rows(rows, rows).endswith("row 7 and 12 more (20 of 20 rows)")
    assert describe_rows([], rows[:2]) == "though each row's own loss is finite; its rows: row 0, row 1"

"""What rounds may do beside rolling out and training: each by meaning, and all of it through kills."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from rounds_runs import (
    assert_same_run,
    assert_same_weights,
    figures_of,
    kill_again_and_again,
    kill_at,
    kill_in,
    kill_in_rollout,
    rows_of,
    weights_of,
)
from training_runs import TOKENIZER, kill_in_step, metrics_of, refusal_of, trajectory

from t3d import trajectories
from t3d.config import OptimConfig, load_recipe
from t3d.corruption import TrainingRow
from t3d.errors import RequestError, WorkError
from t3d.models import load_model, model_fingerprint
from t3d.training import train
from t3d.training.data import load_rows
from t3d.training.optimizers import build_optimizer
from t3d.training.rounds.completion import cut_of, whole_answers
from t3d.training.rounds.data import agreement
from t3d.training.rounds.plan import plan_rounds, teacher_of
from t3d.training.rounds.rolling import Roller
from t3d.training.run.moments import load_moments, save_moments

NUM_PROMPTS = 8


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, model_folder):
    """Three rounds that do all there is: the teacher's; identical answers; answers that the teacher completes."""
    folder = tmp_path_factory.mktemp("recipe")
    lines = [json.dumps({"id": f"q{number}", "prompt": f"{number} and:"}) for number in range(NUM_PROMPTS)]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    questions = {"prompts": str(folder / "questions.jsonl"), "max_new_tokens": 12, "steps_per_block": 2}
    fields = {
        "model": {"source": str(model_folder)},
        "objective": {"name": "trajectory_ce"},
        "every_round": {
            "rollout": questions,
            "keep_unfinished": True,
            "optimizer": "carried",
            "teacher_share": 0.25,
        },
        "rounds": [
            {"rollout": {"by": "teacher", "steps_per_block": None}},
            {"rollout": {"max_new_tokens": 4, "samples": 2}, "keep": "identical"},
            {"rollout": {"completed_by": "teacher", "count": 6}},
        ],
        "stop_rounds": {
            "by": "agreement",
            "patience": 0,
            "rollout": {"count": 7, "max_new_tokens": 4, "steps_per_block": 1},
        },
        "optim": {"steps": 3, "examples_per_step": 3, "lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every_steps": 2},
        "log_every": 1,
        "device": "cpu",
        "out": "unset",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(recipe_file, tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(load_recipe(recipe_file, [f"out={out}"]))
    return out


def whole_ids(row):
    return [*row.prompt_ids, *row.response_ids]


# The run and its record


def test_the_record_says_what_was_kept_and_how_good_each_student_is(finished):
    figures = figures_of(finished)
    assert list(figures) == [
        "round-1/trajectories",
        "round-1/training",
        "round-1/judged/trajectories",
        "round-1/judged/full-step",
        "round-1/judged",
        "round-2/trajectories",
        "round-2/full-step",
        "round-2/kept",
        "round-2/training",
        "round-2/judged/trajectories",
        "round-2/judged/full-step",
        "round-2/judged",
        "round-3/trajectories",
        "round-3/completed",
        "round-3/training",
        "round-3/judged/trajectories",
        "round-3/judged/full-step",
        "round-3/judged",
        "model",
    ]
    record = json.loads((finished / "rounds.json").read_text())["finished"]
    assert [part for part, each in record.items() if "seconds" not in each] == ["model"]  # a copy
    few, full = rows_of(finished / "round-2" / "trajectories"), rows_of(finished / "round-2" / "full-step")
    kept = [one for one, other in zip(few, full, strict=True) if one.response_text == other.response_text]
    assert kept == rows_of(finished / "round-2" / "kept")
    assert figures["round-2/kept"]["share"] == len(kept) / len(few)
    assert 0 < len(kept) < len(few)
    scores = []
    for number in (1, 2, 3):
        folder = finished / f"round-{number}" / "judged"
        few, full = rows_of(folder / "trajectories"), rows_of(folder / "full-step")
        assert [row.prompt_id for row in few] == [
            row.prompt_id for row in rows_of(finished / "round-1" / "judged" / "full-step")
        ]
        meta = trajectories.read_meta(folder / "trajectories")
        student = load_model(finished / f"round-{number}" / "training" / "model", device="cpu")
        assert (meta.revision, meta.seed, meta.steps_per_block) == (model_fingerprint(student), 0, 1)
        assert trajectories.read_meta(folder / "full-step").steps_per_block == 4
        scores.append(sum(a.response_text == b.response_text for a, b in zip(few, full, strict=True)) / 7)
        assert figures[f"round-{number}/judged"] == {"agreement": scores[-1]}
    best = scores.index(max(scores)) + 1
    assert figures["model"] == {"from": f"round-{best}/training/model"}
    assert_same_weights(finished / "model", finished / f"round-{best}" / "training" / "model")


def test_killed_between_parts_is_uninterrupted(recipe_file, finished, tmp_path, monkeypatch):
    """Each part is there but not in rounds.json yet."""
    out = tmp_path / "run"
    parts = ("round-1/training", "round-1/judged", "round-2/kept", "round-2/training", "round-2/judged/full-step")
    parts += ("round-3/completed", "round-3/training", "round-3/judged", "model")
    kills = [(kill_at, part, False) for part in parts]
    kill_again_and_again(load_recipe(recipe_file, [f"out={out}"]), monkeypatch, kills)
    assert_same_run(out, finished)


def test_killed_inside_of_parts_is_uninterrupted(recipe_file, finished, tmp_path, monkeypatch):
    """In trainings that carry moments on and mix rows in, while moments are written, in judging and completing."""
    out = tmp_path / "run"
    kills = [
        (kill_in_step, 3),
        (kill_in, "t3d.training.trainer.save_moments"),
        (kill_in, "t3d.training.run.folder.RunFolder.close"),
        (kill_in_rollout, 2),
        (kill_at, "round-2/full-step", True),
        (kill_in, "t3d.training.rounds.rolling.trajectories.write"),
        (kill_in_step, 3),
        (kill_at, "round-3/trajectories", True),
        (kill_in_rollout, 4),
        (kill_in, "t3d.training.trainer.load_moments"),
        (kill_in, "t3d.training.rounds.rolling.agreement"),
    ]
    kill_again_and_again(load_recipe(recipe_file, [f"out={out}"]), monkeypatch, kills)
    assert_same_run(out, finished)


# Moments


def moments_of(training):
    return torch.load(training / "moments.pt", weights_only=True)["state"]


def test_moments_are_carried_from_round_to_round(finished):
    assert {float(each["step"]) for each in moments_of(finished / "round-1" / "training").values()} == {3.0}
    assert {float(each["step"]) for each in moments_of(finished / "round-2" / "training").values()} == {6.0}
    assert not (finished / "round-3" / "training" / "moments.pt").exists()  # nobody goes on from them
    rates = [[line["lr"] for line in metrics_of(finished / f"round-{number}" / "training")] for number in (1, 2)]
    assert rates[0] == rates[1]  # the schedule starts anew


def descend(optimizer, weights, first, last):
    for step in range(first, last):
        for index, weight in enumerate(weights):
            weight.grad = torch.sin(weight.detach() * (step + 1) + index)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_with_carried_moments_goes_on_as_if_it_were_the_old_one(dtype, tmp_path):
    """Five steps in one go, or two, and three in another optimizer over a copy of the weights."""

    def start():
        return [torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype), torch.ones(4, dtype=dtype)]

    optim = OptimConfig(steps=5, lr=0.1)
    whole, first = start(), start()
    torch.manual_seed(0)
    descend(build_optimizer(whole, optim), whole, 0, 5)
    torch.manual_seed(0)
    optimizer = build_optimizer(first, optim)
    descend(optimizer, first, 0, 2)
    save_moments(optimizer, tmp_path)
    second = [weight.clone() for weight in first]
    other = build_optimizer(second, optim)
    load_moments(other, tmp_path)
    descend(other, second, 2, 5)
    assert all(torch.equal(left, right) for left, right in zip(whole, second, strict=True))
    settings = build_optimizer(second, optim.model_copy(update={"lr": 0.5, "weight_decay": 0.3}))
    load_moments(settings, tmp_path)
    assert [group["lr"] for group in settings.param_groups] == [0.5, 0.5]  # its own settings stay
    assert [group["weight_decay"] for group in settings.param_groups] == [0.3, 0.0]


def test_moments_of_something_else_are_refused(tmp_path):
    weights, optim = [torch.ones(2, 3)], OptimConfig(steps=1)
    optimizer = build_optimizer(weights, optim)
    assert "run it with optim.keep_moments" in refusal_of(RequestError, load_moments, optimizer, tmp_path)
    save_moments(optimizer, tmp_path)
    other = build_optimizer([torch.ones(3, 3)], optim)
    assert "another shapes of weights" in refusal_of(RequestError, load_moments, other, tmp_path)
    other = build_optimizer([torch.ones(2, 3, dtype=torch.bfloat16)], optim)
    assert "another optimizer" in refusal_of(RequestError, load_moments, other, tmp_path)
    (tmp_path / "moments.pt").write_bytes(b"torn")
    assert "cannot be read" in refusal_of(RequestError, load_moments, optimizer, tmp_path)
    assert "nowhere/moments.pt: " in refusal_of(WorkError, save_moments, optimizer, tmp_path / "nowhere")


# The first teacher's rows


def test_a_quarter_of_a_rounds_rows_are_the_first_teachers(finished):
    model = load_model(finished / "round-1" / "training" / "model", device="cpu").config
    first = {row.row_id: row for row in map(TrainingRow.from_trajectory, rows_of(finished / "round-1/trajectories"))}
    for number, data in ((2, "kept"), (3, "completed")):
        own = rows_of(finished / f"round-{number}" / data)
        recipe = load_recipe(finished / f"round-{number}" / "training" / "recipe.yaml")
        found = load_rows(recipe.data, TOKENIZER, model, recipe.prompt)
        assert [row.response_ids.tolist() for row in found[: len(own)]] == [[*row.response_ids] for row in own]
        mixed_in = found[len(own) :]
        assert len(mixed_in) == round(len(own) / 3)
        for row in mixed_in:
            source = first[row.row_id.split(" mixed in ")[0]]
            assert (row.response_ids.tolist(), row.prompt_ids.tolist()) == (
                source.response_ids.tolist(),
                source.prompt_ids.tolist(),
            )
    stored = json.loads((finished / "round-1" / "training" / "recipe.json").read_text())
    assert stored["data"]["mix_in"] is None  # they are its own


# Whose answers are agreed with


def test_kept_is_what_agrees_with_the_teacher(recipe_file, tmp_path):
    """As by hand: the teacher's full-step answers to round 2's prompts, and what is the same of its student's."""
    prompts = load_recipe(recipe_file).rounds[0].rollout.prompts
    fields = {"prompts": prompts, "max_new_tokens": 3, "temperature": 0.0}
    rounds = [{"rollout": fields}, {"rollout": fields, "keep": "agreeing", "agree_with": "teacher"}]
    out = tmp_path / "run"
    settings = [f"out={out}", "every_round={keep_unfinished: true}", "stop_rounds=null", "optim.lr=0.003"]
    train(load_recipe(recipe_file, [*settings, f"rounds={json.dumps(rounds)}"]))
    teachers, students = rows_of(out / "round-2" / "full-step"), rows_of(out / "round-2" / "trajectories")
    assert [row.response_ids for row in teachers] == [row.response_ids for row in rows_of(out / "round-1/trajectories")]
    assert (
        trajectories.read_meta(out / "round-2/full-step").model
        == trajectories.read_meta(out / "round-1/trajectories").model
    )
    same = [
        student
        for student, teacher in zip(students, teachers, strict=True)
        if student.response_text == teacher.response_text
    ]
    assert rows_of(out / "round-2" / "kept") == same
    assert 0 < len(same) < len(students)
    assert figures_of(out)["round-2/kept"]["share"] == len(same) / len(students)


def test_the_teacher_is_agreed_with_in_blocks_of_its_own_size(recipe_file):
    """In other blocks its own answers are compared too; in its own they are what is compared with."""
    fields = {"prompts": load_recipe(recipe_file).rounds[0].rollout.prompts, "max_new_tokens": 3, "temperature": 0.0}
    larger = {"block_size": 8, "steps_per_block": 2}
    rounds = [{"rollout": {"by": by, **fields, **blocks}} for by in ("teacher", "student") for blocks in ({}, larger)]
    whole = "every_round={keep: agreeing, agree_with: teacher}"
    recipe = load_recipe(recipe_file, [whole, "stop_rounds=null", f"rounds={json.dumps(rounds)}"])
    planned = [each.rollout for each in plan_rounds(recipe, TOKENIZER)]
    assert planned[0].full_step is None
    for each in planned[1:]:
        assert each.decodings[each.compared][0] == teacher_of(recipe)
        assert (each.full_step.block_size, each.full_step.steps_per_block) == (4, 4)
    sizes = [(each.few_step.block_size, each.few_step.steps_per_block) for each in planned]
    assert sizes == [(4, 4), (8, 2), (4, 4), (8, 2)]


def test_nobody_is_agreed_with_where_all_is_kept(recipe_file):
    changed = "rounds.1={keep: all, agree_with: teacher}"
    assert "agree_with teacher: nothing is compared" in refusal_of(RequestError, load_recipe, recipe_file, [changed])


# The student visits, the teacher labels


def test_the_teacher_goes_on_from_the_end_of_a_block(finished):
    begun, done = rows_of(finished / "round-3" / "trajectories"), rows_of(finished / "round-3" / "completed")
    meta = trajectories.read_meta(finished / "round-3" / "completed")
    teacher = trajectories.read_meta(finished / "round-1" / "trajectories")
    assert (meta.model, meta.revision) == (teacher.model, teacher.revision)
    student = trajectories.read_meta(finished / "round-3" / "trajectories")
    assert (meta.steps_per_block, student.steps_per_block) == (4, 2)
    stayed = []
    for row, first in zip(done, begun, strict=True):
        cut = len(row.prompt_ids) - len(first.prompt_ids)
        assert (row.prompt_id, row.sample, row.seed) == (first.prompt_id, first.sample, first.seed)
        assert [*row.prompt_ids] == whole_ids(first)[: len(row.prompt_ids)]
        assert cut == 0 or len(row.prompt_ids) % 4 == 0
        assert cut + len(row.response_ids) <= 12
        assert row.prompt_text == first.prompt_text + TOKENIZER.decode(first.response_ids[:cut])
        assert row.response_text == TOKENIZER.decode(row.response_ids, skip_special_tokens=True)
        stayed.append(cut)
    assert max(stayed) > 0


def test_a_teacher_that_completes_its_own_full_step_answers_changes_nothing(recipe_file, tmp_path):
    """Greedy decoding of a block hangs on what is before it alone; and so all of its answers agree."""
    out = tmp_path / "run"
    fields = {
        "prompts": load_recipe(recipe_file).rounds[0].rollout.prompts,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "completed_by": "teacher",
    }
    only = f"rounds={json.dumps([{'rollout': fields, 'keep': 'agreeing'}])}"
    train(load_recipe(recipe_file, [f"out={out}", "every_round={keep_unfinished: true}", only, "stop_rounds=null"]))
    begun, done = rows_of(out / "round-1" / "trajectories"), rows_of(out / "round-1" / "completed")
    assert [whole_ids(row) for row in done] == [whole_ids(row) for row in begun]
    assert any(len(row.prompt_ids) > len(first.prompt_ids) for row, first in zip(done, begun, strict=True))
    assert rows_of(out / "round-1" / "kept") == done
    assert figures_of(out)["round-1/kept"]["share"] == 1
    assert not (out / "round-1" / "full-step").exists()  # the answers are that


def answered(row, prompt_ids, response_ids):
    """A row with other tokens."""
    tokens = {"prompt_ids": prompt_ids, "response_ids": response_ids, "reveal_step": [1] * len(response_ids)}
    return replace(row, **tokens, confidence=[1.0] * len(response_ids))


def test_completed_answers_agree_as_a_whole():
    """What the student began counts too: without a task's grader the whole texts are compared."""
    tokens = TOKENIZER.encode("one two three four", add_special_tokens=False)
    first = replace(trajectory(0), prompt_ids=[5, 6], response_text="")
    row = answered(first, [5, 6, *tokens[:2]], tokens[2:])
    (whole,) = whole_answers([row], [first], TOKENIZER)
    assert whole.response_text == "one two three four"
    full = replace(first, response_text="one two three four")
    assert agreement([whole], [full], None) == [True]
    assert agreement([row], [full], None) == [False]


def test_cuts_are_ends_of_blocks_inside_of_the_response():
    row = answered(trajectory(0), [1] * 6, [2] * 9)
    cuts = {cut_of(replace(row, prompt_id=f"p{number}"), 4, seed=0) for number in range(60)}
    assert cuts == {2, 6}  # positions 8 and 12 of 6 .. 14
    assert cut_of(row, 4, seed=0) == cut_of(row, 4, seed=0)
    assert len({tuple(cut_of(replace(row, prompt_id=f"p{n}"), 4, seed) for n in range(20)) for seed in range(3)}) == 3
    assert cut_of(answered(row, [1] * 6, [2] * 2), 4, seed=0) == 0  # it ends where its block does
    assert cut_of(answered(row, [1] * 8, [2] * 4), 4, seed=0) == 0
    assert cut_of(answered(row, [1] * 8, [2] * 5), 4, seed=0) == 4


# Which student goes on, and when it is enough

SCORED = ["rounds.1.keep=all", "rounds.2.rollout.completed_by=null", "every_round.optim={steps: 1}"]


def run_with_scores(recipe, scores, monkeypatch):
    """A run whose students are judged to be worth this, one after another."""
    left = iter(scores)
    monkeypatch.setattr(Roller, "agreement", lambda *_: next(left))
    train(recipe)
    return list(left)


def lines_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("round ") and "rolls" not in line]


def test_a_run_ends_when_rounds_bring_nothing_better(recipe_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"out={out}", *SCORED, "stop_rounds.patience=1"])
    assert run_with_scores(recipe, [0.5, 0.5, 0.9], monkeypatch) == [0.9]
    assert not (out / "round-3").exists()
    assert figures_of(out)["model"] == {"from": "round-1/training/model"}
    assert_same_weights(out / "model", out / "round-1" / "training" / "model")
    assert lines_of(capsys)[-3:] == [
        "round 2 of 3: the student's agreement is 50.0%",
        "round 2 of 3: nothing better since round 1, and the patience is spent; the run ends",
        "round 2 of 3: model is the student of round 1",
    ]
    kill_in(monkeypatch, "t3d.engine.Engine.generate")
    kill_in(monkeypatch, "t3d.training.trainer.Trainer.run")
    before = weights_of(out / "model")
    train(recipe, resume=True)  # nothing is left to do
    assert all(torch.equal(weights_of(out / "model")[key], weight) for key, weight in before.items())


def test_the_last_student_may_be_published_all_the_same(recipe_file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    two = "rounds=[{}, {}]"
    recipe = load_recipe(recipe_file, [f"out={out}", two, "every_round.optim={steps: 1}", "stop_rounds.publish=last"])
    assert run_with_scores(recipe, [0.5, 0.4], monkeypatch) == []
    assert figures_of(out)["model"] == {"from": "round-2/training/model"}


EVALUATED = "evaluation={every_steps: 1, limit: 2, max_new_tokens: 4, tokens_per_step: [1, 2]}"


def test_a_round_may_leave_its_best_student(recipe_file, tmp_path):
    """Random models never answer right: of equals the earliest is the best, which is the one before training."""
    out = tmp_path / "run"
    stop = "stop_rounds={by: accuracy, patience: 1}"
    changes = ["every_round.optimizer=fresh", "every_round.student=best", EVALUATED, stop]
    train(load_recipe(recipe_file, [f"out={out}", *SCORED, *changes]))
    teacher = trajectories.read_meta(out / "round-1" / "trajectories")
    second = trajectories.read_meta(out / "round-2" / "trajectories")
    assert second.model == str(out / "round-1" / "training" / "best")
    assert second.revision == teacher.revision
    assert figures_of(out)["round-1/judged"] == figures_of(out)["round-2/judged"] == {"accuracy": 0.0}
    assert not (out / "round-3").exists()
    assert figures_of(out)["model"] == {"from": "round-1/training/best"}
    assert model_fingerprint(load_model(out / "model", device="cpu")) == teacher.revision


LATE_REFUSALS = {
    "judged at full-step": (["stop_rounds.rollout.steps_per_block=4"], "stop_rounds.rollout: full-step answers agree"),
    "judged by what is not there": (["stop_rounds.rollout.prompts=no.jsonl"], "stop_rounds.rollout: cannot read no"),
    "judged by too long answers": (["stop_rounds.rollout.max_new_tokens=999"], "stop_rounds.rollout: prompt 0 "),
}


@pytest.mark.parametrize("changes, said", LATE_REFUSALS.values(), ids=LATE_REFUSALS)
def test_what_a_later_part_cannot_do_is_refused_before_the_first(changes, said, recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, [f"out={tmp_path / 'run'}", *changes])
    assert said in refusal_of(RequestError, train, recipe)
    assert not (tmp_path / "run").exists()

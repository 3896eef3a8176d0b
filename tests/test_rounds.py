"""Rounds: they are rollouts and trainings as if done by hand, and a kill anywhere changes nothing."""

import json
import shutil
import signal
import sys
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
    kill_in_copy,
    kill_in_rollout,
    rows_of,
    weights_of,
)
from training_runs import kill_in_step, metrics_of, refusal_of, start_processes, trajectory

from t3d import trajectories
from t3d.cli import run
from t3d.config import PromptConfig, RolloutConfig, load_recipe, make_recipe
from t3d.engine import Engine
from t3d.engine.rules import RULES
from t3d.errors import RequestError, WorkError
from t3d.models import load_model, model_fingerprint
from t3d.tasks import GraderOptions, get_task
from t3d.tasks.prompts import put_questions
from t3d.training import train
from t3d.training.learner import Learner
from t3d.training.rounds.data import agreement, decoding_of, full_step_of
from t3d.types import Decoding

NUM_PROMPTS = 8
PARTS = (
    "round-1/trajectories",
    "round-1/training",
    "round-2/trajectories",
    "round-2/full-step",
    "round-2/kept",
    "round-2/training",
    "model",
)
"""Of the run below, in their order."""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, model_folder):
    """Two rounds: of a task's questions at one token a step, then of a file's at two, whose answers must agree."""
    folder = tmp_path_factory.mktemp("recipe")
    lines = [json.dumps({"id": f"q{number}", "prompt": f"{number} and:"}) for number in range(NUM_PROMPTS)]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    task = {"task": "story", "count": 6, "max_new_tokens": 12}
    questions = {"prompts": str(folder / "questions.jsonl"), "max_new_tokens": 4, "steps_per_block": 2, "samples": 2}
    fields = {
        "model": {"source": str(model_folder)},
        "objective": {"name": "t3d", "path_weight": 0.5},
        "rounds": [
            {"rollout": task, "keep_unfinished": True, "optim": {"steps": 3}},
            {"rollout": questions, "keep_unfinished": True, "keep": "agreeing"},
        ],
        "optim": {"steps": 4, "examples_per_step": 3, "lr": 1e-3, "warmup_steps": 1},
        "reference": {"refresh_every": 2},
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


def put(task, data, split, count, seed, tokenizer):
    """The questions of a task, put in its own way."""
    chosen = get_task(task, data)
    return put_questions(chosen, chosen.problems(split, count, seed), PromptConfig(), tokenizer)


# What a round does


def test_rounds_are_rollouts_and_trainings(recipe_file, finished, tmp_path):
    """The same two rounds by hand."""
    recipe = load_recipe(recipe_file, [f"out={finished}"])
    teacher, student = recipe.model.source, str(finished / "round-1" / "training" / "model")
    decoding = Decoding(temperature=0.1, max_new_tokens=12, seed=1)
    engine = Engine.from_pretrained(teacher, device="cpu")
    asked = put("story", None, "train", 6, 1, engine.tokenizer)
    trajectories.rollout(engine, asked.prompts, decoding, tmp_path / "t1", model_name=teacher, form=asked.form)
    assert rows_of(tmp_path / "t1") == rows_of(finished / "round-1" / "trajectories")
    base = recipe.model_dump(exclude={"rounds"})
    first = {"trajectories": str(tmp_path / "t1"), "keep_unfinished": True}
    steps = {**base["optim"], "steps": 3}
    train(make_recipe({**base, "data": first, "optim": steps, "seed": 1, "out": str(tmp_path / "r1")}))
    assert metrics_of(tmp_path / "r1") == metrics_of(finished / "round-1" / "training")
    assert_same_weights(tmp_path / "r1" / "model", finished / "round-1" / "training" / "model")

    engine = Engine.from_pretrained(student, device="cpu")
    asked = put("jsonl", recipe.rounds[1].rollout.prompts, "all", None, 0, engine.tokenizer)
    few = replace(decoding, max_new_tokens=4, seed=2, steps_per_block=2)
    into = {"model_name": student, "samples": 2, "form": asked.form}
    trajectories.rollout(engine, asked.prompts, few, tmp_path / "t2", **into)
    full = replace(few, steps_per_block=4)
    trajectories.rollout(engine, asked.prompts, full, tmp_path / "f2", **into)
    few_rows, full_rows = rows_of(tmp_path / "t2"), rows_of(tmp_path / "f2")
    assert few_rows == rows_of(finished / "round-2" / "trajectories")
    assert full_rows == rows_of(finished / "round-2" / "full-step")
    kept = [few for few, full in zip(few_rows, full_rows, strict=True) if few.response_text == full.response_text]
    assert kept == rows_of(finished / "round-2" / "kept")
    assert 0 < len(kept) < len(few_rows) == 2 * NUM_PROMPTS
    trajectories.write(tmp_path / "k2", kept, trajectories.read_meta(tmp_path / "t2"))
    second = {"trajectories": str(tmp_path / "k2"), "keep_unfinished": True}
    model = {**base["model"], "source": student}
    train(make_recipe({**base, "model": model, "data": second, "seed": 2, "out": str(tmp_path / "r2")}))
    assert metrics_of(tmp_path / "r2") == metrics_of(finished / "round-2" / "training")
    assert_same_weights(tmp_path / "r2" / "model", finished / "model")


def test_the_folder_says_where_everything_comes_from(recipe_file, finished):
    teacher = load_recipe(recipe_file).model.source
    students = [str(finished / f"round-{number}" / "training" / "model") for number in (1, 2)]
    for number, (roller, pace) in enumerate([(teacher, 4), (students[0], 2)], start=1):
        meta = trajectories.read_meta(finished / f"round-{number}" / "trajectories")
        assert (meta.model, meta.steps_per_block, meta.seed) == (roller, pace, number)
        assert meta.revision == model_fingerprint(load_model(roller, device="cpu"))
        assert meta.prompt == PromptConfig(style="plain", instruction="", prefix="{prefix}")
        stored = json.loads((finished / f"round-{number}" / "training" / "recipe.json").read_text())
        assert stored["model"]["source"] == roller
    assert trajectories.read_meta(finished / "round-2" / "kept") == meta
    assert list(figures_of(finished)) == list(PARTS)
    assert figures_of(finished)["round-1/training"] == {"steps": 3}
    assert figures_of(finished)["round-2/training"] == {"steps": 4}
    assert figures_of(finished)["round-2/kept"]["answers"] == len(rows_of(finished / "round-2" / "kept"))
    assert len(json.loads((finished / "recipe.json").read_text())["rounds"]) == 2
    assert not (finished / "round-1" / "full-step").exists()  # nothing to agree with was asked for


def test_the_teacher_is_always_the_original_model(recipe_file, tmp_path, capsys):
    changes = ["rounds.1.rollout.by=teacher", "rounds.1.keep=all", "rounds.1.optim={steps: 1}"]
    train(load_recipe(recipe_file, [f"out={tmp_path / 'run'}", *changes]))
    first, second = (trajectories.read_meta(tmp_path / "run" / f"round-{number}" / "trajectories") for number in (1, 2))
    assert (first.model, first.revision) == (second.model, second.revision)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round ")]
    source, student = load_recipe(recipe_file).model.source, tmp_path / "run" / "round-1" / "training" / "model"
    assert lines == [
        "round 1 of 2: the teacher rolls out 6 answers at 1 token per step",
        f"round 1 of 2: the student starts from {source} and trains to step 3",
        "round 2 of 2: the teacher rolls out 16 answers at 2 tokens per step",
        f"round 2 of 2: the student starts from {student} and trains to step 1",
    ]


def test_a_run_of_rounds_from_random_weights(recipe_file, tmp_path):
    """Shapes in place of a model: their random weights are the teacher, and are written down once."""
    shapes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    shapes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "block_size": 4}
    model = json.dumps({"init": shapes, "tokenizer": "story-tokenizer"})
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"out={out}", f"model={model}", "rounds.1.keep=all", "seed=3"])
    student = train(recipe)
    meta = trajectories.read_meta(out / "round-1" / "trajectories")
    assert meta.revision == model_fingerprint(load_model(out / "teacher", device="cpu"))
    assert meta.seed == 4  # the recipe's seed plus the round's number
    assert student.config.hidden_size == 8
    assert not student.training
    assert train(recipe, resume=True).config.hidden_size == 8


def test_with_adapters_each_round_starts_from_the_merged_model(recipe_file, tmp_path):
    out = tmp_path / "run"
    changes = ["model.adapter={rank: 2}", "rounds.1.keep=all", "rounds.1.optim={steps: 1}"]
    train(load_recipe(recipe_file, [f"out={out}", *changes]))
    merged = [model_fingerprint(load_model(out / f"round-{n}" / "training" / "model", device="cpu")) for n in (1, 2)]
    rolled_out = [trajectories.read_meta(out / f"round-{n}" / "trajectories").revision for n in (1, 2)]
    assert rolled_out[1] == merged[0]
    assert len({*rolled_out, *merged}) == 3
    assert (out / "round-2" / "training" / "adapter").exists()


# Kills


@pytest.mark.parametrize("written", [False, True])
def test_killed_between_parts_is_uninterrupted(written, recipe_file, finished, tmp_path, monkeypatch):
    """After each part in turn: it is there but not in rounds.json yet, or it just got there."""
    out = tmp_path / "run"
    kills = [(kill_at, part, written) for part in PARTS]
    kill_again_and_again(load_recipe(recipe_file, [f"out={out}"]), monkeypatch, kills)
    assert_same_run(out, finished)


def test_killed_inside_of_parts_is_uninterrupted(recipe_file, finished, tmp_path, monkeypatch):
    """In a rollout, before and after a checkpoint, while the answers that are kept or the last model are written."""
    out = tmp_path / "run"
    kills = [
        (kill_in_rollout, 3),
        (kill_in, "t3d.training.trainer.Trainer.run"),
        (kill_in_step, 1),
        (kill_in_step, 3),
        (kill_in_rollout, 5),
        (kill_at, "round-2/trajectories", True),
        (kill_in_rollout, 5),
        (kill_in, "t3d.trajectories.store.TrajectoryWriter.write_shard"),
        (kill_in_step, 4),
        (kill_in_copy,),
    ]
    kill_again_and_again(load_recipe(recipe_file, [f"out={out}"]), monkeypatch, kills)
    assert_same_run(out, finished)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_ctrl_c_in_the_last_step_of_a_round_stops_the_run(recipe_file, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"out={out}"])
    step = Learner.step

    def interrupted(self, batches, number):
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, batches, number)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="round-1/training; --resume goes on"):
            train(recipe)
    assert not (out / "round-2").exists()
    train(recipe, resume=True)
    assert_same_run(out, finished)


def test_a_finished_run_has_nothing_left_to_do(recipe_file, finished, tmp_path, monkeypatch, capsys):
    """Nothing is decoded or trained, also when what the rounds learned from was thrown away to save room."""
    out = tmp_path / "run"
    command = ["train", str(recipe_file), f"out={out}"]
    assert run(command) == 0
    said = capsys.readouterr().out
    for folder in ("round-1/trajectories", "round-2/kept", "round-1/training"):
        shutil.rmtree(out / folder)
    weights = weights_of(out / "model")
    kill_in(monkeypatch, "t3d.engine.Engine.generate")
    kill_in(monkeypatch, "t3d.training.trainer.Trainer.run")
    assert run([*command, "--resume"]) == 0
    assert capsys.readouterr().out == said
    assert str(out / "model") in said
    assert all(torch.equal(weights_of(out / "model")[key], weight) for key, weight in weights.items())
    assert figures_of(out) == figures_of(finished)


@pytest.mark.slow
def test_one_of_two_processes_rolls_out_and_both_train(recipe_file, finished, tmp_path):
    out = tmp_path / "run"
    processes = start_processes(load_recipe(recipe_file, [f"out={out}"]), tmp_path / "recipe.yaml", 2)
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert rows_of(out / "round-1" / "trajectories") == rows_of(finished / "round-1" / "trajectories")
    left, right = (rows_of(folder / "round-2" / "full-step") for folder in (out, finished))  # up to rounding of weights
    assert [row.response_ids for row in left] == [row.response_ids for row in right]
    for part in ("round-1/training", "round-2/training"):
        for left, right in zip(metrics_of(out / part), metrics_of(finished / part), strict=True):
            assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
    assert weights_of(out / "model").keys() == weights_of(finished / "model").keys()
    assert sorted("rolls out" in output for output in outputs) == [False, True]  # one of them reports


# Agreement


def agree(few_text, full_text, grader):
    """Whether two responses to one prompt agree."""
    few, full = (replace(trajectory(0), answer="6", response_text=text) for text in (few_text, full_text))
    (agrees,) = agreement([few], [full], grader)
    return agrees


def test_answers_that_agree_by_hand():
    with get_task("story").grader() as grader:
        assert grader.extract_answer("first #### 7, then #### 8.50 in all") == "8.50"
        assert grader.extract_answer("8") is None
        assert grader.extract_answer("#### eight") is None
        assert agree("so 5.\n#### 5", "in another way #### 5.0", grader)  # the reference is 6
        assert not agree("#### 5", "#### 6", grader)
        assert not agree("5", "#### 5", grader)
        assert not agree("#### 5", "5", grader)
        assert not agree("the same words", "the same words", grader)  # no answer agrees with nothing
    assert agree(" the same words", "the same words ", None)
    assert not agree("#### 5", "so #### 5", None)


def test_answers_agree_as_their_task_compares_them():
    with get_task("gsm8k").grader() as grader:
        assert agree("\\boxed{1/2}", "so \\boxed{0.5}", grader)
        assert not agree("\\boxed{1/2}", "so \\boxed{0.25}", grader)
    with get_task("humaneval").grader(GraderOptions(sandbox="limits")) as grader:  # nothing is run
        assert agree("    return 2\n```\nThere.", "    return 2\n```", grader)
        assert not agree("    return 2\n```", "    return 3\n```", grader)


def test_each_row_is_compared_with_its_own():
    few = [replace(trajectory(index), response_text=f"#### {index}") for index in range(4)]
    full = [replace(row, response_text=f"that is #### {answer}") for row, answer in zip(few, (0, 7, 2, 8), strict=True)]
    with get_task("story").grader() as grader:
        assert agreement(few, full, grader) == [True, False, True, False]
    assert agreement(few, few, None) == [True] * 4
    with pytest.raises(ValueError, match="p1/0 stands beside"):
        agreement(few[1:], full[:-1], None)


@pytest.mark.parametrize(
    "rule, steps, full_step",
    [
        ("low_confidence_static", 2, ("low_confidence_static", 4)),
        ("sequential", 1, ("sequential", 4)),
        ("low_confidence_dynamic", 4, ("low_confidence_static", 4)),
        ("entropy_bounded", 2, ("low_confidence_static", 4)),
        ("low_confidence_static", None, None),
        ("sequential", 4, None),
    ],
)
def test_full_step_is_one_token_a_step(rule, steps, full_step):
    rollout = RolloutConfig(prompts="x", rule=rule, steps_per_block=steps, temperature=0.3, max_new_tokens=9)
    few = decoding_of(rollout, block_size=4, seed=5)
    full = full_step_of(few)
    if full_step is None:
        assert full is None
    else:
        assert (full.rule, full.steps_per_block) == full_step
        assert replace(full, rule=few.rule, steps_per_block=few.steps_per_block) == few


@pytest.mark.parametrize("rule", RULES)
def test_full_step_rules_reveal_one_token_a_step_whatever_the_model_says(rule):
    decoding = Decoding(block_size=4, steps_per_block=4, rule=rule)
    sure = torch.ones(1, 4)
    masked, revealed = torch.ones(1, 4, dtype=torch.bool), []
    while masked.any():
        options = {"entropy": 0 * sure, "threshold": decoding.threshold, "entropy_bound": decoding.entropy_bound}
        reveal = RULES[rule](sure, masked, len(revealed), 4, **options)
        revealed.append(int(reveal.sum()))
        masked = masked & ~reveal
    assert (revealed == [1, 1, 1, 1]) == (full_step_of(decoding) is None)


def test_at_full_step_all_answers_agree(recipe_file, tmp_path):
    out = tmp_path / "run"
    changes = ["rounds.1.rollout.steps_per_block=null", "rounds.0.optim={steps: 1}", "rounds.1.optim={steps: 1}"]
    train(load_recipe(recipe_file, [f"out={out}", *changes]))
    assert sorted(path.name for path in (out / "round-2").iterdir()) == ["training", "trajectories"]
    assert len(rows_of(out / "round-2" / "trajectories")) == 2 * NUM_PROMPTS


# Changes to the recipe


def test_a_round_changes_single_keys(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["rounds.0.objective={beta: 0.3}", "rounds.1.objective={name: sft}", "rounds.1.corruption={block_size: 2}"],
    )
    first, second = (recipe.of_round(n, source="m", trajectories="t", out="o") for n in (1, 2))
    assert (first.optim.steps, second.optim.steps) == (3, 4)
    assert first.optim.model_copy(update={"steps": 4}) == second.optim == recipe.optim
    assert first.objective.model_dump() == {"name": "t3d", "path_weight": 0.5, "beta": 0.3}
    assert second.objective.model_dump() == {"name": "sft"}  # whose options the recipe's are not
    assert (first.corruption.block_size, second.corruption.block_size) == (None, 2)
    assert (first.seed, second.seed) == (1, 2)
    assert (first.model.source, first.data.trajectories, first.out) == ("m", "t", "o")
    assert first.data.keep_unfinished
    assert first.rounds == ()


def test_overrides_reach_into_lists(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["rounds.0.rollout.count=100", "rounds.1.optim.lr=2", "out=here"])
    assert (recipe.rounds[0].rollout.count, recipe.rounds[1].optim) == (100, {"lr": 2})
    (tmp_path / "aliases.yaml").write_text(
        "model: {source: story-mini}\nobjective: {name: sft}\noptim: {steps: 1}\nout: here\n"
        "rounds: [&one {rollout: {task: story, count: 5}}, *one, *one]\n"
    )
    recipe = load_recipe(tmp_path / "aliases.yaml", ["rounds.1.rollout.count=7", "rounds.2.keep=agreeing"])
    assert [each.rollout.count for each in recipe.rounds] == [5, 7, 5]  # an alias is a copy
    assert [each.keep for each in recipe.rounds] == ["all", "all", "agreeing"]
    recipe = load_recipe(recipe_file, ["evaluation={every_steps: 1, tokens_per_step: [1, 2]}"])
    assert recipe.evaluation.tokens_per_step == (1, 2)


# Refusals

REFUSALS = {
    "neither data nor rounds": (["rounds=[]"], "yaml: give either data"),
    "both data and rounds": (["data={task: story}"], "yaml: give either data"),
    "a rollout of nothing": (["rounds.0.rollout.task=null"], "rounds.0.rollout: give either task"),
    "a rollout of two things": (["rounds.0.rollout.prompts=x"], "rounds.0.rollout: give either task"),
    "data of no task": (["rounds.1.rollout.data=x"], "rounds.1.rollout: data is where a task's problems come from"),
    "unknown style of prompts": (["prompt.style=loud"], ": prompt.style: "),
    "unknown key of a round": (["rounds.1.step=3"], "unknown key rounds.1.step: "),
    "unknown key of a rollout": (["rounds.1.rollout.limit=3"], "unknown key rounds.1.rollout.limit: "),
    "unknown key that a round changes": (["rounds.1.optim.step=3"], "rounds.1: unknown key optim.step: "),
    "wrong value that a round changes": (["rounds.1.optim.lr=-3"], "rounds.1: optim.lr: "),
    "round that is not there": (["rounds.2.keep=all"], "'rounds.2.keep=all': rounds has 2 entries, counted from 0"),
    "round by name": (["rounds.last.keep=all"], "'rounds.last.keep=all': rounds has 2 entries, counted from 0"),
    "whole round that is not there": (["rounds.-1={}"], "'rounds.-1={}': rounds has 2 entries"),
    "below a plain value": (["rounds.1.keep.x=1"], "'rounds.1.keep.x=1': keep is not a group"),
    "wrong rounds": (["rounds=3"], ": rounds: "),
}


@pytest.mark.parametrize("changes, said", REFUSALS.values(), ids=REFUSALS)
def test_wrong_recipes_are_refused_in_one_line(changes, said, recipe_file):
    assert said in refusal_of(RequestError, load_recipe, recipe_file, changes)


LATE_REFUSALS = {
    "rule": (["rounds.1.rollout.rule=magic"], "rounds.1.rollout: rule 'magic' is unknown"),
    "steps": (["rounds.1.rollout.steps_per_block=5"], "rounds.1.rollout: steps_per_block must be at most"),
    "length": (["rounds.1.rollout.max_new_tokens=999"], "rounds.1.rollout: prompt 0 "),
    "task": (["rounds.0.rollout.task=chess"], "rounds.0.rollout: unknown task 'chess'"),
    "split": (["rounds.0.rollout.split=exam"], "rounds.0.rollout: unknown split 'exam'"),
    "endless task": (["rounds.0.rollout.count=null"], "rounds.0.rollout: task story is endless"),
    "data": (["rounds.0.rollout.data=x"], "rounds.0.rollout: task story draws its own problems"),
    "file": (["rounds.1.rollout.prompts=nowhere.jsonl"], "rounds.1.rollout: cannot read nowhere.jsonl"),
    "form of the prompts": (["prompt.style=chat"], "rounds.0.rollout: prompt style chat: the tokenizer has no"),
    "objective": (["rounds.1.objective={name: magic}"], "objective 'magic'"),
    "option": (["rounds.1.objective={magic: 1}"], "magic"),
    "model": (["model.source=nowhere"], "model nowhere"),
    "adapter": (["model.adapter={targets: [nope]}"], "no linear layer is called nope"),
    "reference": (["rounds.1.reference={form: adapter}"], "reference.form adapter"),
    "benchmark": (["evaluation={every_steps: 1, benchmark: magic}"], "evaluation: benchmark 'magic'"),
    "tracker": (["tracking={to: [wandb]}"], "tracking.to wandb"),
}


@pytest.mark.parametrize("changes, said", LATE_REFUSALS.values(), ids=LATE_REFUSALS)
def test_what_a_later_part_cannot_do_is_refused_before_the_first(changes, said, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    recipe = load_recipe(recipe_file, [f"out={tmp_path / 'run'}", *changes])
    assert said in refusal_of(RequestError, train, recipe)
    assert not (tmp_path / "run").exists()


def test_out_is_refused_as_for_any_run(recipe_file, finished, tmp_path):
    recipe = load_recipe(recipe_file, [f"out={finished}"])
    assert "add --resume" in refusal_of(RequestError, train, recipe)
    other = load_recipe(recipe_file, [f"out={finished}", "rounds.1.keep=all"])
    assert "holds a run with another rounds" in refusal_of(RequestError, train, other, True)
    (tmp_path / "letter.txt").write_text("keep me")
    assert "something else" in refusal_of(RequestError, train, load_recipe(recipe_file, [f"out={tmp_path}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_run_goes_on_under_its_own_name(recipe_file, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "moved")
    recipe = load_recipe(recipe_file, [f"out={tmp_path / 'moved'}"])
    assert f"was begun as out={finished}" in refusal_of(RequestError, train, recipe, True)
    (tmp_path / "moved" / "rounds.json").write_text("{")
    assert "rounds.json cannot be read" in refusal_of(RequestError, train, recipe, True)


def test_a_round_without_anything_to_learn_from_stops_the_run(recipe_file, tmp_path):
    """And stops it again: the rounds before stay as they are."""
    task = "rounds.1.rollout={task: story, count: 2, max_new_tokens: 4, steps_per_block: 1}"  # too short for an answer
    recipe = load_recipe(recipe_file, [f"out={tmp_path / 'disagreeing'}", "rounds.0.optim={steps: 1}", task])
    for resume in (False, True):
        said = refusal_of(WorkError, train, recipe, resume)
        assert said.startswith("round 2: none of 2 answers agrees with the full-step answer; ")
    unfinished = ["rounds.0.keep_unfinished=false", "rounds.0.rollout.max_new_tokens=1"]
    recipe = load_recipe(recipe_file, [f"out={tmp_path / 'unfinished'}", *unfinished])
    assert "none of 6 answers ended by a stop token" in refusal_of(WorkError, train, recipe)


def test_a_full_disk_at_the_end_is_one_line(recipe_file, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"out={out}"])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copytree", full)
        said = refusal_of(WorkError, train, recipe)
    assert "No space left on device" in said
    assert str(out / "round-2" / "training" / "model") in said
    assert not (out / "model").exists()
    train(recipe, resume=True)
    assert_same_run(out, finished)

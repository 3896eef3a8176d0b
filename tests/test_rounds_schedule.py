"""A schedule of rounds as it is written: what rounds share, repeats, and what goes together; nothing is run."""

import json

import pytest
import yaml
from tiny import random_row
from training_runs import TOKENIZER, refusal_of

from t3d.config import PromptConfig, RolloutConfig, load_recipe, make_recipe
from t3d.errors import RequestError
from t3d.training.mixing import mixed
from t3d.training.rounds.data import questions_of
from t3d.training.rounds.judging import best_round, is_enough

SCHEDULE = """
model: {source: story-mini}
objective: {name: t3d, path_weight: 0.5}
optim: {steps: 10, lr: 1.0e-3}
every_round: {rollout: {task: story, count: 6000, max_new_tokens: 160}}
rounds:
  - {rollout: {by: teacher}}
  - {rollout: {steps_per_block: 2}, keep: agreeing}
  - {rollout: {steps_per_block: 1}, keep: agreeing, repeat: 2}
out: runs/here
"""


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    file = tmp_path_factory.mktemp("schedule") / "recipe.yaml"
    file.write_text(SCHEDULE)
    return file


def steps_and_counts(recipe):
    return [(each.rollout.steps_per_block, each.rollout.count) for each in recipe.rounds]


# Written out


def test_what_rounds_share_and_repeat_is_written_out(schedule):
    shared = {"task": "story", "count": 6000, "max_new_tokens": 160}
    fields = {key: value for key, value in yaml.safe_load(SCHEDULE).items() if key != "every_round"}
    rounds = [{"rollout": {**shared, "by": "teacher"}}]
    rounds += [{"rollout": {**shared, "steps_per_block": steps}, "keep": "agreeing"} for steps in (2, 1, 1)]
    recipe = load_recipe(schedule)
    assert recipe == make_recipe({**fields, "rounds": rounds})
    assert make_recipe(json.loads(recipe.model_dump_json())) == recipe  # as `out` stores it


def test_overrides_count_rounds_as_folders_do_after_repeats(schedule):
    recipe = load_recipe(schedule, ["every_round.rollout.count=7", "rounds.3.rollout.count=9"])
    assert steps_and_counts(recipe) == [(None, 7), (2, 7), (1, 7), (1, 9)]
    changes = ["every_round.keep=identical", "every_round.optim={steps: 3}", "rounds.1.optim.lr=2"]
    recipe = load_recipe(schedule, changes)
    assert [each.keep for each in recipe.rounds] == ["identical", "agreeing", "agreeing", "agreeing"]
    assert [each.optim for each in recipe.rounds] == [{"steps": 3}, {"steps": 3, "lr": 2}, {"steps": 3}, {"steps": 3}]
    recipe = load_recipe(schedule, ["every_round=null", "rounds=[{rollout: {prompts: x}}]"])
    assert steps_and_counts(recipe) == [(None, None)]


def test_another_objective_leaves_the_shared_ones_options_behind(schedule):
    shared = "every_round.objective={name: t3d, path_weight: 1.0, beta: 0.3}"
    changes = [shared, "rounds.1.objective={name: sft}", "rounds.2.objective={beta: 0.2}"]
    recipe = load_recipe(schedule, changes)
    assert recipe.rounds[0].objective == {"name": "t3d", "path_weight": 1.0, "beta": 0.3}
    assert recipe.rounds[1].objective == {"name": "sft"}
    assert recipe.rounds[2].objective == {"name": "t3d", "path_weight": 1.0, "beta": 0.2}


def test_what_students_are_judged_by_shares_all_but_who_answers(schedule):
    judged = "stop_rounds={by: agreement, patience: 2, rollout: {split: validation, count: 50, steps_per_block: 1}}"
    stop = load_recipe(schedule, ["every_round.rollout.by=teacher", judged]).stop_rounds
    asked = {"task": "story", "split": "validation", "count": 50, "steps_per_block": 1, "max_new_tokens": 160}
    assert stop.rollout == RolloutConfig(**asked)
    assert (stop.patience, stop.publish) == (2, "best")


def test_a_rounds_training_carries_on_and_mixes_in_what_it_was_asked_to(schedule):
    changes = ["every_round.optimizer=carried", "every_round.teacher_share=0.25", "rounds.2.optimizer=fresh", "seed=10"]
    recipe = load_recipe(schedule, changes)
    trainings = [
        recipe.of_round(n, source="m", trajectories="t", out="o", before=f"r{n - 1}", first_rows="first")
        for n in range(1, 5)
    ]
    assert [each.optim.moments_from for each in trainings] == [None, "r1", None, "r3"]
    assert [each.optim.keep_moments for each in trainings] == [True, False, True, False]
    assert [each.data.mix_in for each in trainings] == [None, "first", "first", "first"]
    assert [each.data.mix_in_share for each in trainings] == [0, 0.25, 0.25, 0.25]
    assert [each.data.seed for each in trainings] == [0, 12, 13, 14]
    plain = load_recipe(schedule, ["seed=10"]).of_round(2, source="m", trajectories="t", out="o", first_rows="first")
    assert plain.data.model_dump(exclude_defaults=True) == {"trajectories": "t"}
    assert plain.optim == load_recipe(schedule).optim


# Questions


def test_rounds_see_different_problems_of_a_finite_source(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"q{number}", "prompt": f"{number}:"}) for number in range(20)))

    def asked(seed, **fields):
        rollout = RolloutConfig(prompts=str(file), **fields)
        return [each.prompt_id for each in questions_of(rollout, PromptConfig(), TOKENIZER, seed).prompts]

    first, second = asked(1, count=8), asked(2, count=8)
    assert len({*first}) == len({*second}) == 8
    assert {*first} != {*second}
    assert asked(1, count=8) == first
    assert asked(1, count=5) == first[:5]
    in_order = [f"q{number}" for number in range(20)]
    assert asked(1) == asked(2) == in_order  # all of them: there is nothing to choose
    assert asked(1, count=8, shuffle=False) == asked(2, count=8, shuffle=False) == in_order[:8]


def test_an_endless_task_draws_its_problems_by_the_seed():
    def asked(seed, **fields):
        rollout = RolloutConfig(task="story", count=5, **fields)
        return questions_of(rollout, PromptConfig(), TOKENIZER, seed).prompts

    assert asked(1) == asked(1, shuffle=False)
    assert {each.text for each in asked(1)}.isdisjoint(each.text for each in asked(2))


# Rows that are mixed in


def rows(letter, count):
    return [random_row(f"{letter}{number}", prompt_length=2, length=3, seed=number) for number in range(count)]


def test_as_many_rows_are_mixed_in_as_the_share_says():
    own, others = rows("a", 6), rows("b", 5)
    found = mixed(own, others, share=0.25, seed=3)
    assert found[:6] == own
    assert len(found) == 8  # 2 of 8 are a quarter
    found = mixed(own, others, share=0.7, seed=3)
    assert len(found) == 20  # 14 of 20
    ids = [row.row_id for row in found]
    assert len({*ids}) == 20
    turns = [sum(row_id.startswith(f"b{number} ") for row_id in ids) for number in range(5)]
    assert sorted(turns) == [2, 3, 3, 3, 3]  # 14 = 5 + 5 + 4
    assert mixed(own, others, share=0.01, seed=3) == own  # 0.06 of a row


def test_which_rows_are_mixed_in_hangs_on_seed_and_id_alone():
    own, others = rows("a", 4), rows("b", 40)

    def chosen(source, seed):
        return [row.row_id for row in mixed(own, source, share=0.5, seed=seed)[4:]]

    assert chosen(others, 1) == chosen(others[::-1], 1)
    assert chosen(others, 1) != chosen(others, 2)
    by_id = {row.row_id: row for row in others}
    for row in mixed(own, others, share=0.5, seed=1)[4:]:
        assert row.response_ids is by_id[row.row_id.split()[0]].response_ids
    same = mixed(own, own, share=0.5, seed=1)  # a file's prompts have the same ids in every round
    assert len({row.row_id for row in same}) == 8


# When to stop


@pytest.mark.parametrize(
    "scores, patience, best, enough",
    [
        ([0.5], 1, 1, False),
        ([0.5, 0.4], 1, 1, True),
        ([0.5, 0.5], 1, 1, True),  # as good is not better
        ([0.5, 0.4], 2, 1, False),
        ([0.5, 0.4, 0.3], 2, 1, True),
        ([0.5, 0.4, 0.6], 2, 3, False),
        ([0.5, 0.6, 0.1, 0.6], 2, 2, True),
        ([0.5, 0.4, 0.3, 0.2], 0, 1, False),
    ],
)
def test_patience_by_hand(scores, patience, best, enough):
    assert best_round(scores) == best
    assert is_enough(scores, patience) is enough


# Refusals

JUDGED = "stop_rounds={by: agreement, patience: 1, rollout: {steps_per_block: 1}}"
REFUSALS = {
    "repeat that is no count": (["rounds.1.repeat=0"], "rounds.1.repeat: must be a whole number from 1, not 0"),
    "repeat by word": (["rounds.1.repeat=twice"], "rounds.1.repeat: must be a whole number from 1, not 'twice'"),
    "shared key": (["every_round.rolout={}"], "unknown key every_round.rolout: "),
    "shared key of a rollout": (["every_round.rollout.limit=3"], "unknown key every_round.rollout.limit: "),
    "shared value": (["every_round=3"], "every_round: must be a group of keys"),
    "shared rollout": (["every_round.rollout=3"], "every_round.rollout: must be a group of keys"),
    "a value that is shared": (["every_round.rollout.count=0"], "rounds.0.rollout.count: "),
    "nothing to share": (["rounds=[]", "data={task: story, count: 5}"], "every_round: is what rounds share"),
    "rounds by word": (["rounds=three"], "rounds: must be a list"),
    "a round by word": (["rounds.1=three"], "rounds.1: must be a group of keys"),
    "round after repeats": (["rounds.4.keep=all"], "rounds has 4 entries"),
    "share": (["rounds.1.teacher_share=1"], "rounds.1.teacher_share: "),
    "best of no evaluation": (["every_round.student=best"], "rounds.0.student best: needs evaluation"),
    "optimizers": (
        ["every_round.optimizer=carried", "rounds.2.optim={optimizer: adamw_8bit}"],
        "rounds.2.optimizer carried: adamw_8bit cannot go on from the moments of adamw; ",
    ),
    "moments of adapters": (
        ["rounds.1.optimizer=carried", "model.adapter={rank: 2}"],
        "rounds.1.optimizer carried: adapters start anew",
    ),
    "moments of another student": (
        ["every_round.optimizer=carried", "rounds.0.student=best", "evaluation={every_steps: 1}"],
        "rounds.1.optimizer carried: moments are the last student's",
    ),
    "stop without patience": (["stop_rounds={by: accuracy}"], "stop_rounds.patience: "),
    "accuracy of no evaluation": (["stop_rounds={by: accuracy, patience: 1}"], "stop_rounds.by accuracy: needs evalu"),
    "agreement on nothing": (["stop_rounds={by: agreement, patience: 1}"], "stop_rounds: give rollout"),
    "agreement of the teacher": ([JUDGED, "stop_rounds.rollout.by=teacher"], "stop_rounds: rollout: each round's stud"),
    "accuracy on a rollout": (
        [JUDGED, "stop_rounds.by=accuracy", "evaluation={every_steps: 1}"],
        "stop_rounds: give rollout",
    ),
    "stop without rounds": (
        [JUDGED, "every_round=null", "rounds=[]", "data={task: story, count: 5}", "stop_rounds.rollout.task=story"],
        "stop_rounds: there are no rounds to stop",
    ),
    "teacher completes itself": (
        ["rounds.0.rollout.completed_by=teacher"],
        "rounds.0.rollout: completed_by: the teacher completes what the student began",
    ),
    "identical to a completed answer": (
        ["rounds.1.rollout.completed_by=teacher", "rounds.1.keep=identical"],
        "rounds.1: keep identical: nothing is identical to a completed answer",
    ),
    "a share of nothing": (["every_round=null", "rounds=[]", "data={trajectories: x, mix_in: y}"], "data: give both"),
    "mixed into worked answers": (
        ["every_round=null", "rounds=[]", "data={task: story, count: 5, mix_in: y, mix_in_share: 0.5}"],
        "data: mix_in: is mixed into trajectories",
    ),
}


@pytest.mark.parametrize("changes, said", REFUSALS.values(), ids=REFUSALS)
def test_wrong_schedules_are_refused_in_one_line(changes, said, schedule):
    assert said in refusal_of(RequestError, load_recipe, schedule, changes)

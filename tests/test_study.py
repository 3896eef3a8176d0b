"""Studies before they run: what is refused, in which order cells are done, and how times are counted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_runs import HOPELESS, run_inline, study_fields, study_of
from training_runs import refusal_of

from t3d.cli import run
from t3d.config.merging import merged
from t3d.config.study import load_study
from t3d.errors import RequestError
from t3d.study.cells import Cell, recipe_of, rollout_recipe, tasks_of, uses_rollouts
from t3d.study.check import check_study
from t3d.study.graph import Graph, Task
from t3d.study.pool import environments
from t3d.study.rows import CurvePoint, pack_bits, unpack_bits
from t3d.study.state import State
from t3d.study.timing import seconds_per_step, training_of

RECIPES = Path(__file__).parent.parent / "recipes" / "story"


def test_devices_go_round():
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(3, ["0", "5"])] == ["0", "5", "0"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(2, [])] == ["", ""]
    assert {each["OMP_NUM_THREADS"] for each in environments(2, [])} == {"1"}


@given(st.data())
def test_tasks_begin_once_and_after_what_they_need(data):
    count = data.draw(st.integers(1, 8))
    needs = [data.draw(st.sets(st.integers(0, index - 1)) if index else st.just(set())) for index in range(count)]
    graph = Graph([Task(str(index), "test", needs=tuple(map(str, own))) for index, own in enumerate(needs)])
    running, begun = [], []
    while not graph.is_over:
        for task in graph.ready():
            assert all(need in graph.errors for need in task.needs)
            graph.begin(task.key)
            begun.append(task.key)
            running.append(task.key)
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        graph.end(ended, data.draw(st.sampled_from([None, "why"])))
    assert sorted(begun) == sorted(map(str, range(count)))


def test_tasks_need_what_exists():
    with pytest.raises(ValueError, match="is no task"):
        Graph([Task("a", "test", needs=("b",))])


def test_merged_changes_single_keys_of_groups():
    recipe = {"optim": {"steps": 3, "lr": 1}, "objective": {"name": "t3d", "path_weight": 1}, "log_every": 2}
    changes = {"optim": {"steps": 4}, "objective": {"path_k": 2}, "log_every": 5, "precision": "fp32"}
    assert merged(recipe, changes) == {
        "optim": {"steps": 4, "lr": 1},
        "objective": {"name": "t3d", "path_weight": 1, "path_k": 2},
        "log_every": 5,
        "precision": "fp32",
    }
    assert merged(recipe, {"objective": {"name": "sft"}})["objective"] == {"name": "sft"}


def test_worked_answers_are_to_the_problems_that_were_rolled_out(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    fields["methods"]["sft"] = {"objective": {"name": "sft"}, "data": {"task": "story"}}
    study = study_of(fields)
    data = recipe_of(study, Cell("sft", 1e-3, 100)).data
    assert (data.task, data.count, data.seed, data.trajectories) == ("story", 6, 101, None)
    needs = next(task.needs for task in tasks_of(study) if task.key == "tune/sft/lr-0.001")
    assert needs == ()
    check_study(study)


WRONG = (
    ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
    ({"learning_rates": []}, "learning_rates"),
    ({"seed": 3}, "unknown key seed"),
    ({"ablations": {"x": {"of": "y"}}}, "ablations: x: of 'y' is no method"),
    (
        {"ablations": {"Plain": {"of": "plain"}}},
        "names of rows (methods, ablations, the teacher): plain is there twice",
    ),
    ({"ablations": {"teacher": {"of": "plain"}}}, "the teacher): teacher is there twice"),
    ({"ablations": {"plain, equal time": {"of": "plain"}}}, "the teacher): plain-equal-time is there twice"),
    ({"ablations": {"日本": {"of": "plain"}}}, "'日本' cannot name a folder"),
    ({"equal_time": {"to": "plain", "methods": ["rounds"]}}, "equal_time.methods: rounds has rounds"),
    ({"recipe": {"model": {"source": "x"}}}, "recipe: model.source is the study's teacher"),
    ({"equal_time": {"to": "y"}}, "equal_time.to 'y' is no method"),
    ({"claims": [{"text": "", "better": "rounds", "than": "y"}]}, "claims.0: 'y' is no row"),
    ({"claims": [{"text": "", "better": "rounds", "than": "plain", "at": [2]}]}, "claims.0.at: 2 is not one"),
    ({"recipe": {"seed": 1}}, "recipe: seed differs from cell to cell"),
    (
        {"methods": {"plain": {"optim": {"lr": 1}}}, "ablations": {}, "equal_time": None, "claims": []},
        "optim.lr is tuned",
    ),
)


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
def test_wrong_studies_are_refused_in_one_line(change, message, model_folder, tmp_path):
    assert message in refusal_of(RequestError, study_of, {**study_fields(model_folder, tmp_path), **change})


WRONG_METHODS = (
    ({"objective": {"name": "nothing"}}, "wrong: objective 'nothing' is unknown"),
    ({"objective": {"name": "ddo", "gamma": 1}}, "wrong: objective ddo: gamma"),
    ({"objective": {"name": "ddo"}, "optin": {"steps": 1}}, "method wrong: unknown key optin"),
    ({"objective": {"name": "ddo"}, "optim": 3}, "method wrong: optim: must be a group"),
    ({"objective": {"name": "sft"}, "data": {"task": "nothing"}}, "wrong: unknown task 'nothing'"),
    ({"objective": {"name": "ddo"}, "data": {"task": "story"}}, "wrong: objective ddo: needs trajectories, not data"),
    ({"objective": {"name": "ddo"}, "data": 3}, "method wrong: data: must be a group"),
    ({"objective": {"name": "ddo"}, "rounds": [{"rollout": {"task": "story", "count": 9, "rule": "x"}}]}, "rule 'x'"),
)


@pytest.mark.parametrize("method, message", WRONG_METHODS, ids=[message for _, message in WRONG_METHODS])
def test_wrong_methods_are_refused_before_anything_runs(method, message, model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path / "out")
    fields["methods"]["wrong"] = method
    assert message in refusal_of(RequestError, run_inline, fields)
    assert not (tmp_path / "out").exists()


def test_problems_that_tables_show_tune_nothing(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    fields["tune"] = {**fields["tune"], "split": "test"}
    assert "tune.split test: is what tables show" in refusal_of(RequestError, check_study, study_of(fields))
    check_study(study_of({**fields, "learning_rates": [1e-3]}))  # nothing is chosen


def test_a_model_that_is_no_group_is_refused(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    fields["recipe"] = {**fields["recipe"], "model": "tiny"}
    assert "recipe: model: must be a group of keys" in refusal_of(RequestError, check_study, study_of(fields))


def test_worked_answers_are_not_to_other_problems_than_those_rolled_out(model_folder, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in range(9)))
    fields = study_fields(model_folder, tmp_path)
    rollout = {"task": "gsm8k", "data": str(file), "count": 3, "max_new_tokens": 4}
    fields["methods"]["sft"] = {"objective": {"name": "sft"}, "data": {"task": "gsm8k"}}
    told = refusal_of(RequestError, check_study, study_of({**fields, "rollout": rollout}))
    assert "sft: data.task gsm8k: its worked answers are to the first problems" in told
    study = study_of({**fields, "rollout": {**rollout, "shuffle": False}})
    check_study(study)
    assert recipe_of(study, Cell("sft", 1e-3, 0)).data.data == str(file)


def test_data_may_change_what_is_taken_of_the_shared_rollouts(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    shared = str(tmp_path / "rollouts" / "seed-100")
    fields["methods"]["unfinished"] = {"objective": {"name": "ddo"}, "data": {"keep_unfinished": True}}
    fields["methods"]["foreign"] = {"objective": {"name": "ddo"}, "data": {"trajectories": "elsewhere"}}
    study = study_of(fields)
    data = recipe_of(study, Cell("unfinished", 1e-3, 100)).data
    assert (data.trajectories, data.keep_unfinished) == (shared, True)
    assert recipe_of(study, Cell("foreign", 1e-3, 100)).data.trajectories == "elsewhere"
    assert [uses_rollouts(study, name) for name in ("plain", "unfinished", "foreign", "rounds")] == [
        True,
        True,
        False,
        False,
    ]


def test_shared_rollouts_do_not_hang_on_the_first_method(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    prompts = {"task": "story", "count": 2, "max_new_tokens": 4}
    first = {
        "objective": {"name": "ddo"},
        "prompt": {"prefix": "Q: "},
        "every_round": {"rollout": prompts},
        "rounds": [{"rollout": {}}],
        "stop_rounds": {"by": "agreement", "patience": 1, "rollout": {"steps_per_block": 1}},
    }
    study = study_of({**fields, "methods": {"first": first, **fields["methods"]}})
    assert rollout_recipe(study, 0) == rollout_recipe(study_of(fields), 0)
    check_study(study)


def test_students_are_asked_as_they_were_trained(model_folder, tmp_path):
    fields = study_fields(model_folder, tmp_path)
    fields["recipe"] = {**fields["recipe"], "prompt": {"prefix": "Q: "}}
    fields["methods"]["other"] = {**fields["methods"]["rounds"], "prompt": {"prefix": "A: "}}
    study = study_of(fields)
    tasks = [task for task in tasks_of(study) if task.kind in ("teacher", "tune") and task.variant != "plain"]
    asked = {task.variant or task.kind: State(study).job_of(task).prompt.prefix for task in tasks}
    assert asked == {"teacher": "Q: ", "rounds": "Q: ", HOPELESS: "Q: ", "other": "A: "}


@pytest.mark.parametrize("name", ["study.yaml", "study-mini.yaml"])
def test_shipped_studies_can_be_done(name):
    check_study(load_study(RECIPES / name))


def test_the_command_line_refuses_in_one_line(tmp_path, capsys, model_folder):
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(study_fields(model_folder, tmp_path / "out")))
    for arguments, message in (
        (["study", str(tmp_path / "none.yaml")], "cannot be read"),
        (["study", str(file), "test.limit=none"], "test.limit"),
        (
            ["study", str(file), "test.tokens_per_step=[3]", "claims=[]"],
            "tokens-per-step 3 does not divide the block size 4",
        ),
        (["study-report", str(tmp_path)], "rows.json"),
    ):
        assert run(arguments) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_come_back(right):
    assert unpack_bits(pack_bits(right), len(right)).tolist() == right


def test_a_steps_seconds_are_the_median_without_the_first_stretch():
    rates = [1.0, 10.0, 20.0, 40.0]  # examples a second, of 20 examples a step: 20, 2, 1, 0.5 seconds
    lines = [{"step": 1, "examples_per_second": rate} for rate in rates] + [{"step": 9, "accuracy@1": 0.5}]
    assert seconds_per_step(lines, 20) == 1.0
    assert seconds_per_step(lines[:1], 20) == 20.0


def write_run(folder, steps, pace, accuracy, seconds=9.0):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"optim": {"examples_per_step": 4}}))
    lines = [{"step": step, "examples_per_second": 4 / pace} for step in range(1, steps + 1)]
    lines.append({"step": steps, "accuracy@2": accuracy})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "outcome.json").write_text(json.dumps({"seconds": seconds}))
    (folder / "starts.jsonl").write_text("{}\n")


def test_times_of_one_training_and_of_rounds(tmp_path):
    write_run(tmp_path / "one", steps=5, pace=2.0, accuracy=0.25)
    one = training_of(tmp_path / "one", 7.0, "cpu")
    assert (one.steps, one.seconds_per_step, one.rollout_seconds, one.wall_seconds) == (5, 2.0, 7.0, 9.0)
    assert one.seconds == 7.0 + 5 * 2.0
    assert one.curve == (CurvePoint(step=5, seconds=17.0, accuracy={2: 0.25}),)

    rounds = tmp_path / "rounds"
    write_run(rounds / "round-1" / "training", steps=2, pace=1.0, accuracy=0.5, seconds=4.0)
    write_run(rounds / "round-2" / "training", steps=6, pace=3.0, accuracy=0.75, seconds=19.0)
    (rounds / "starts.jsonl").write_text("{}\n{}\n")
    finished = {
        "round-1/trajectories": {"seconds": 10.0},
        "round-1/training": {"seconds": 0.0},  # of a process that only wrote it down
        "round-1/judged/trajectories": {"seconds": 50.0},  # judging is evaluation
        "round-1/judged": {"seconds": 60.0},
        "round-2/trajectories": {"seconds": 20.0},
        "round-2/full-step": {"seconds": 30.0},
        "round-2/kept": {"answers": 3},
        "round-2/training": {"seconds": 20.0},
        "model": {"from": "round-2/training/model"},
    }
    (rounds / "rounds.json").write_text(json.dumps({"out": str(rounds), "finished": finished}))
    both = training_of(rounds, 0.0, "cpu")
    assert (both.steps, both.rollout_seconds, both.wall_seconds, both.starts) == (8, 60.0, 23.0, 2)
    assert both.seconds_per_step == pytest.approx((2 * 1.0 + 6 * 3.0) / 8)
    assert [(point.step, point.seconds) for point in both.curve] == [(2, 12.0), (8, 60.0 + 2.0 + 18.0)]

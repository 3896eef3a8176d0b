"""Running studies: every cell is done once whatever kills it, and rows do not depend on who worked, nor on how many."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import pytest
from processes import children_of, is_alive
from study_runs import HOPELESS, Inline, Killed, comparable, run_inline, study_fields, study_of
from training_runs import kill_in_step, refusal_of

from t3d import trajectories
from t3d.errors import RequestError, WorkError
from t3d.study.cells import Cell, recipe_of, tasks_of
from t3d.study.jobs import RolloutJob, complete, drop_weights
from t3d.study.pool import Pool, environments
from t3d.study.report.write import incomplete
from t3d.study.rows import read_row, read_rows
from t3d.study.run import require_all_done
from t3d.study.state import State


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder):
    """A study that nothing interrupted: its fields, its workers and its rows."""
    fields = study_fields(model_folder, tmp_path_factory.mktemp("study") / "out")
    workers = Inline(at_once=3)
    return fields, workers, run_inline(fields, workers)


def rows_named(rows, name):
    return [row for row in rows.rows if row.name == name]


def test_every_cell_is_there(whole):
    fields, workers, rows = whole
    tuned = [row for row in rows.rows if row.validation]
    assert [(row.name, row.lr, row.seed) for row in tuned] == [
        (name, lr, 0) for name in ("plain", "rounds") for lr in (1e-3, 3e-3)
    ]
    tested = [(row.name, row.seed) for row in rows.rows if row.settings]
    assert sorted(tested, key=str) == sorted(
        [
            ("teacher", None),
            *(
                (name, seed)
                for name in ("plain", "plain (equal time)", "rounds", "no random tokens")
                for seed in (0, 100)
            ),
        ],
        key=str,
    )
    assert len(set(workers.done)) == len(workers.done)
    for row in rows.rows:
        assert [each.label for each in row.settings] in (
            [],
            ["1 token/step", "4 tokens/step"],
            ["1 token/step", "4 tokens/step", "dynamic > 0.5"],
        )
        assert all(each.num_problems == 5 for each in row.settings)
    assert {len(row.settings) for row in rows_named(rows, "no random tokens")} == {2}
    assert read_rows(Path(fields["out"])) == rows


def test_students_of_a_seed_share_rollouts(whole):
    _, _, rows = whole
    by_seed = {}
    for row in rows.rows:
        if row.recipe is not None and row.recipe["data"] is not None:
            by_seed.setdefault(row.seed, set()).add(row.recipe["data"]["trajectories"])
    assert {seed: len(folders) for seed, folders in by_seed.items()} == {0: 1, 100: 1}
    first, second = ([each.prompt_ids for each in trajectories.read(*folders)] for folders in by_seed.values())
    assert first != second
    assert trajectories.read_meta(*by_seed[100]).seed == 101  # as round 1 of a run with seed 100


def test_the_learning_rate_is_the_best_on_validation(whole):
    _, _, rows = whole
    for name in ("plain", "rounds"):
        own = rows_named(rows, name)
        best = max((row for row in own if row.validation), key=lambda row: (fmean(row.validation.values()), -row.lr))
        assert {row.lr for row in own if row.settings} == {best.lr}
    assert {row.lr for row in rows_named(rows, "no random tokens")} == {
        row.lr for row in rows_named(rows, "plain") if row.settings
    }


def test_a_failed_cell_is_a_row_that_says_so(whole):
    _, _, rows = whole
    own = rows_named(rows, HOPELESS)
    assert [(row.lr, row.seed, bool(row.settings)) for row in own if row.lr is not None] == [
        (1e-3, 0, False),
        (3e-3, 0, False),
    ]
    assert all("none of 1 answers ended by a stop token" in row.error for row in own if row.lr is not None)
    (why,) = {row.error for row in own if row.lr is None}
    assert why in {f"no learning rate of {HOPELESS} worked: {row.error}" for row in own if row.lr is not None}
    assert "4 cells failed" in refusal_of(WorkError, require_all_done, rows)


def test_equal_time_is_worked_out_from_both_methods(whole):
    _, _, rows = whole
    plain, rounds = ([row.training for row in rows_named(rows, name) if row.settings] for name in ("plain", "rounds"))
    given_seconds = fmean(each.rollout_seconds + each.steps * each.seconds_per_step for each in rounds)
    left = given_seconds - fmean(each.rollout_seconds for each in plain)
    steps = int(left / fmean(each.seconds_per_step for each in plain))
    assert [row.training.steps for row in rows_named(rows, "plain (equal time)")] == [steps, steps]
    assert {each.steps for each in rounds} == {2}


def test_weights_of_rates_that_were_not_chosen_go(whole):
    fields, _, rows = whole
    chosen = {row.lr for row in rows_named(rows, "plain") if row.settings}
    for lr in fields["learning_rates"]:
        run_folder = Path(fields["out"]) / "cells" / "plain" / f"lr-{lr:g}" / "seed-0" / "run"
        assert (run_folder / "metrics.jsonl").exists()
        weights = {file.parent.name for file in run_folder.rglob("*.safetensors")}
        assert weights == ({"model"} if lr in chosen else set())


@pytest.mark.slow
def test_killed_again_and_again_is_uninterrupted(whole, tmp_path, monkeypatch):
    fields, workers, rows = whole
    fields = {**fields, "out": str(tmp_path / "out")}
    with monkeypatch.context() as patch:
        kill_in_step(patch, 2)
        first = Inline()
        with pytest.raises(BaseException, match=r"^$"):
            run_inline(fields, first)
    done, resumed = first.done[:-1], None
    while resumed is None:
        part = Inline(at_once=2, kill_after=4)
        try:
            resumed = run_inline(fields, part, resume=True)
        except Killed:
            done += part.done
            for large in ("checkpoints", "*.safetensors", "trajectories"):  # as if it was copied without them
                for found in (tmp_path / "out" / "cells").rglob(large):
                    shutil.rmtree(found) if found.is_dir() else found.unlink()
    assert comparable(resumed) == comparable(rows)
    assert sorted(filter(ends_alike, (*done, *part.done))) == sorted(filter(ends_alike, workers.done))


def ends_alike(key):
    """Whether a task ends as it did elsewhere: clocks decide if rollouts alone take all of an equal time."""
    return HOPELESS not in key and not key.startswith("equal-time/")


def test_a_finished_study_has_nothing_to_do(whole):
    fields, _, rows = whole
    again = Inline()
    resumed = run_inline(fields, again, resume=True)
    assert {key.split("/")[1] for key in again.done} == {HOPELESS}  # what failed is tried again
    assert resumed.rows == rows.rows
    assert len(resumed.starts) == 2


def test_a_study_may_grow(whole):
    fields, _, rows = whole
    grown = {
        **fields,
        "ablations": {**fields["ablations"], "reverse": {"of": "plain", "corruption": {"mask_order": "reverse"}}},
    }
    more = Inline()
    resumed = run_inline(grown, more, resume=True)
    assert {key.split("/")[1] for key in more.done} == {HOPELESS, "reverse"}
    assert [row for row in resumed.rows if row.name != "reverse"] == list(rows.rows)


def test_seeds_may_be_added_and_put_in_front(model_folder, tmp_path):
    """The new first seed was tested, but tunes now; and other seeds are other seconds to be given at equal time."""
    fields = {**study_fields(model_folder, tmp_path / "out"), "learning_rates": [1e-3], "ablations": {}}
    fields |= {"tune": {"limit": 1, "tokens_per_step": [4]}, "test": {**fields["test"], "limit": 2, "thresholds": []}}
    del fields["methods"][HOPELESS]
    before = run_inline(fields)
    more = Inline()
    after = run_inline({**fields, "seeds": [100, 200, 0]}, more, resume=True)
    assert incomplete(after) == []
    assert [row.error for row in after.rows if row.error is not None] == []
    assert {key for key in more.done if key.startswith("tune/")} == {"tune/plain/lr-0.001", "tune/rounds/lr-0.001"}
    assert {key for key in more.done if key.startswith("test/")} == {"test/plain/seed-200", "test/rounds/seed-200"}
    kept = [row.model_copy(update={"validation": {}}) for row in after.rows]
    for row in before.rows:
        assert row.kind == "equal time" or row.model_copy(update={"validation": {}}) in kept
    assert len({row.training.steps for row in rows_named(after, "plain (equal time)")}) == 1


def test_a_training_without_its_weights_begins_anew(model_folder, tmp_path, monkeypatch):
    """As of a rate that failed when others worked, or of a study that was copied without large files."""
    study = study_of(study_fields(model_folder, tmp_path / "out"))
    job = State(study).job_of(next(task for task in tasks_of(study) if task.key == "tune/rounds/lr-0.001"))
    with monkeypatch.context() as patched:
        kill_in_step(patched, 2)
        with pytest.raises(BaseException, match=r"^$"):
            complete(job)
    cell = Path(job.folder)
    assert len(list(cell.rglob("checkpoints/step-*/*.safetensors"))) > 0
    drop_weights(cell / "run", keeps_model=False)
    (cell / "test").mkdir()  # answers of the student that is lost
    complete(job)
    assert read_row(cell / "cell.json").training.starts == 1
    assert not (cell / "test").exists()


def test_a_folder_is_of_one_study(whole, tmp_path):
    fields, _, _ = whole
    assert "holds a study already" in refusal_of(RequestError, run_inline, fields)
    for change in ({"rollout": {**fields["rollout"], "count": 7}}, {"test": {**fields["test"], "limit": 6}}):
        assert "holds a study with another" in refusal_of(RequestError, run_inline, {**fields, **change}, None, True)
    other = {**fields, "methods": {**fields["methods"], "plain": {"objective": {"name": "t3d"}}}}
    assert "another recipe" in refusal_of(RequestError, run_inline, other, None, True)
    (tmp_path / "file").write_text("")
    assert "holds something else" in refusal_of(RequestError, run_inline, {**fields, "out": str(tmp_path)})


PROGRAM = "import sys; from t3d.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.slow
def test_processes_find_what_one_finds_and_leave_nobody_behind(whole, tmp_path):
    fields, _, rows = whole
    batch = {**fields["recipe"]["batch"], "num_workers": 1}  # workers have processes of their own
    recipe = {**fields["recipe"], "batch": batch}
    file = tmp_path / "study.yaml"
    changed = {**fields, "recipe": recipe, "out": str(tmp_path / "out"), "equal_time": None}
    file.write_text(json.dumps(changed))
    command = [sys.executable, "-c", PROGRAM, "study", str(file), "--jobs", "2"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waited = time.monotonic()
    while not list((tmp_path / "out").rglob("cell.json")):
        assert time.monotonic() - waited < 120
        assert killed.poll() is None
        time.sleep(0.1)
    workers = children_of(killed.pid)
    assert len(workers) == 2
    killed.kill()
    killed.wait()
    while any(map(is_alive, workers)):
        assert time.monotonic() - waited < 120
        time.sleep(0.1)
    ended = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert ended.returncode == 1  # a method fails
    assert "4 cells failed" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert comparable(read_rows(tmp_path / "out")) == comparable(rows)
    assert (tmp_path / "out" / "report.md").exists()


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_job_alone(tmp_path, whole):
    fields, _, _ = whole
    recipe = recipe_of(study_of(fields), Cell("rounds", 1e-3, 0))
    lost = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": "/nowhere"})})
    job = RolloutJob(recipe=lost, folder=str(tmp_path / "rollouts"), record=str(tmp_path / "rollouts.json"))
    with Pool(environments(1, []), tmp_path / "logs") as pool:
        pool.start("first", job)
        assert not pool.has_idle
        (worker,) = children_of(os.getpid())
        os.kill(worker, signal.SIGKILL)
        ((key, error),) = pool.wait()
        assert key == "first"
        assert "exit code -9" in error
        pool.start("second", job)
        ((key, error),) = pool.wait()
        assert key == "second"
        assert "/nowhere" in error
        assert "\n" not in error
    assert "Traceback" in (tmp_path / "logs" / "worker-0.log").read_text()

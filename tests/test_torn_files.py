"""Any file of a finished or unfinished piece of work, damaged in any way: redone, or refused by its name; never read.

Each test damages one file of a folder (a bit flipped, cut off, emptied, written twice, swapped with its neighbour,
deleted) and goes on with the work: it ends as it did before, or is refused by a line that names the file or its folder.
"""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper_exam import Dice, paper_benchmark
from study_runs import comparable, run_inline, study_fields
from training_runs import metrics_of, recipe_of, write_story_inputs

from t3d.checksums import checked, damage_of_folder, sealed, unsealed
from t3d.config import PromptConfig
from t3d.config.study import TEACHER
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.evaluation import evaluate, settings_to_try
from t3d.models import load_model, load_tokenizer, save_model
from t3d.tasks import get_task
from t3d.tasks.prompts import put_questions
from t3d.training import run_recipe
from t3d.training.run.checkpoint import Checkpoints
from t3d.training.run.moments import load_moments
from t3d.training.run.sharded_checkpoint import ShardedCheckpoints
from t3d.training.trainer import Trainer
from t3d.trajectories import count as count_rows
from t3d.trajectories import read, read_meta, rollout
from t3d.types import Decoding

KINDS = ("flip", "cut", "empty", "twice", "swap", "delete")


def examples(number):
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


damages = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True))
"""(which file, what happens to it, where)."""


def damaged(folder, copy, damage, *left_out):
    """A copy of a folder with one file damaged; that file, or None if it is as before."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    which, kind, where = damage
    files = sorted(file for file in copy.rglob("*") if file.is_file() and file.name not in left_out)
    place = int(which * len(files))
    file, other = files[place], files[(place + 1) % len(files)]
    content = before = file.read_bytes()
    if kind == "flip" and content:
        bit = int(where * len(content) * 8)
        content = content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
    if kind == "swap":
        content = other.read_bytes()
        other.write_bytes(before)
    content = {"cut": content[: int(where * len(content))], "empty": b"", "twice": content * 2}.get(kind, content)
    file.write_bytes(content)
    if kind == "delete":
        file.unlink()
    elif content == before:
        return None
    return [file, other] if kind == "swap" else [file]


def same_or_refused(files, redo, expected):
    """Do something with a damaged folder; it gives what is expected, or refuses by a file's name."""
    refusal = None
    try:
        found = redo()
    except RequestError as error:
        refusal = error
    if refusal is None:
        assert found == expected
    else:
        assert files, f"nothing was damaged, but: {refusal}"
        assert any(file.name in str(refusal) or str(file.parent) in str(refusal) for file in files), refusal


class Rollouts:
    """24 rows in three shards."""

    def __init__(self, model_folder, folder):
        self.engine = Engine(load_model(model_folder, device="cpu"), load_tokenizer(model_folder))
        task = get_task("story")
        problems = task.problems("train", 24, 0)
        self.questions = put_questions(task, problems, PromptConfig(), self.engine.tokenizer)
        self.folder = folder
        self.rows = self.go_on(folder)

    def go_on(self, folder):
        decoding = Decoding(max_new_tokens=8, temperature=1.0)
        how = {"model_name": "tiny", "form": self.questions.form, "rows_per_shard": 8, "resume": True, "shown": False}
        rollout(self.engine, self.questions.prompts, decoding, folder, **how)
        return list(read(folder))


@pytest.fixture(scope="module")
def rollouts(model_folder, tmp_path_factory):
    return Rollouts(model_folder, tmp_path_factory.mktemp("rollouts") / "whole")


@given(damage=damages)
@examples(40)
def test_rollouts(rollouts, tmp_path, damage):
    copy = tmp_path / "copy"
    files = damaged(rollouts.folder, copy, damage)
    meta = read_meta(rollouts.folder)
    same_or_refused(
        files, lambda: (list(read(copy)), count_rows(copy), read_meta(copy)), (rollouts.rows, len(rollouts.rows), meta)
    )
    same_or_refused(files, lambda: rollouts.go_on(copy), rollouts.rows)


class Evaluations:
    """An evaluation by thrown dice: finished, and cut off at its second setting."""

    def __init__(self, engine, folder):
        self.engine, self.finished, self.begun = engine, folder / "finished", folder / "begun"
        self.expected = self.go_on(self.finished)
        with pytest.raises(KeyboardInterrupt):
            self.go_on(self.begun, Dice(20, KeyboardInterrupt()))

    def go_on(self, out, backend=None):
        self.engine.backend = backend or Dice()
        tried = settings_to_try([1, 4], [], Decoding(max_new_tokens=12, temperature=1.0), 4)
        how = {"samples": 2, "seed": 5, "name": "dice", "model": "a/b", "out": out, "resume": True}
        fields = evaluate(self.engine, paper_benchmark(), tried, **how).model_dump(exclude={"started"})
        for each in fields["settings"]:
            del each["seconds"], each["tokens_per_second"]
        return fields, (out / "answers.jsonl").read_bytes()


@pytest.fixture(scope="module")
def evaluations(model_folder, tmp_path_factory):
    engine = Engine(load_model(model_folder, device="cpu"), load_tokenizer(model_folder), backend=Dice())
    return Evaluations(engine, tmp_path_factory.mktemp("evaluations"))


@given(damage=damages, is_finished=st.booleans())
@examples(60)
def test_evaluations(evaluations, tmp_path, damage, is_finished):
    copy = tmp_path / "copy"
    files = damaged(evaluations.finished if is_finished else evaluations.begun, copy, damage)
    same_or_refused(files, lambda: evaluations.go_on(copy), evaluations.expected)


class Runs:
    """A run of five steps with checkpoints after two and four, the best student, and moments."""

    def __init__(self, folder):
        self.inputs, self.folder = write_story_inputs(folder / "inputs"), folder
        self.out = folder / "run"
        run_recipe(self.recipe(self.out))
        self.expected = self.found(self.out)

    def recipe(self, out):
        evaluation = {"benchmark": "story", "every_steps": 2, "limit": 2, "tokens_per_step": [4], "max_new_tokens": 4}
        changes = {"checkpoint": {"every_steps": 2, "keep": 2}, "evaluation": evaluation}
        optim = {"steps": 5, "examples_per_step": 4, "lr": 1e-3, "warmup_steps": 2, "keep_moments": True}
        return recipe_of(self.inputs, out, optim=optim, **changes)

    def go_on(self, out):
        run_recipe(self.recipe(out), resume=True)
        return self.found(out)

    def found(self, out):
        weights = [(out / name / "model.safetensors").read_bytes() for name in ("model", "best")]
        return weights, metrics_of(out), json.loads((out / "best" / "best.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@given(damage=damages)
@examples(15)
def test_runs(runs, tmp_path, damage):
    copy = tmp_path / "copy"
    files = damaged(runs.out, copy, damage, "optimizer.pt")  # of checkpoints there is a test of its own
    if files and files[0].name == "metrics.jsonl" and not files[0].exists():  # said, and gone on without
        weights, _, best = runs.go_on(copy)
        assert (weights, best) == (runs.expected[0], runs.expected[2])
    else:
        same_or_refused(files, lambda: runs.go_on(copy), runs.expected)


@given(damage=damages, name=st.sampled_from(["model", "best"]))
@examples(40)
def test_models(runs, tmp_path, damage, name):
    copy, whole = tmp_path / "copy", runs.out / name

    def load(folder):
        weights = load_model(folder, device="cpu").state_dict()
        return {key: tensor.tolist() for key, tensor in weights.items()}, load_tokenizer(folder).get_vocab()

    files = damaged(whole, copy, damage)
    same_or_refused(files, lambda: load(copy), load(whole))


def test_moments(runs, tmp_path):
    optimizer = Trainer(runs.recipe(tmp_path / "unused")).learner.optimizer
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    whole.mkdir()
    for name in ("moments.pt", "outcome.json"):
        shutil.copy(runs.out / name, whole / name)

    def moments(folder):
        load_moments(optimizer, folder)
        return str(optimizer.state_dict()["state"])

    expected = moments(whole)

    @given(damage=damages)
    @examples(20)
    def check(damage):
        files = damaged(whole, copy, damage)
        same_or_refused(files, lambda: moments(copy), expected)

    check()


@pytest.fixture
def alone():
    """A group of this process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", [Checkpoints, ShardedCheckpoints])
def test_checkpoints(kind, runs, tmp_path, alone):
    learner = Trainer(runs.recipe(tmp_path / "unused")).learner
    checkpoints = kind(tmp_path / "whole", keep=1)
    newest = runs.out / "checkpoints" / "step-000004"
    Checkpoints(newest.parent, keep=2).load(newest, learner)
    expected, progress = str(learner.state()), {"evaluated": [2, 4], "seconds": 1.5}
    checkpoints.save(4, learner.state(), progress)

    def load(folder):
        return (*checkpoints.load(folder, learner), str(learner.state()))

    @given(damage=damages)
    @examples(40)
    def check(damage):
        files = damaged(checkpoints.newest(), tmp_path / "copy", damage)
        same_or_refused(files, lambda: load(tmp_path / "copy"), (4, progress, expected))

    check()


@pytest.fixture(scope="module")
def study(model_folder, tmp_path_factory):
    """(fields, rows) of one that is finished: one method, one cell."""
    folder = tmp_path_factory.mktemp("study")
    fields = study_fields(model_folder, folder / "out")
    fields |= {"seeds": [0], "learning_rates": [1e-3], "ablations": {}, "claims": [], "equal_time": None}
    fields["methods"] = {"plain": fields["methods"]["plain"]}
    rows = comparable(run_inline(fields))
    assert [row["error"] for row in rows] == [None, None]
    return fields, rows


@pytest.mark.parametrize(
    "name", ["study.json", "rows.json", "cell.json", "seed-0.json", "result.json", "answers.jsonl"]
)
def test_studies(study, name, tmp_path):
    fields, expected = study
    out = Path(fields["out"])
    file = next(file for file in out.rglob(name) if TEACHER not in file.parts)
    whole = file.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    same_or_refused([file], lambda: comparable(run_inline(fields, resume=True)), expected)
    file.write_bytes(whole)
    assert comparable(run_inline(fields, resume=True)) == expected


def test_a_folder_counts_as_unfinished_until_it_is_whole(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), checked(tmp_path):
        (tmp_path / "a").write_text("1")
        raise KeyboardInterrupt
    assert damage_of_folder(tmp_path) == "it was not written to its end"
    with checked(tmp_path):
        (tmp_path / "a").write_text("2")
    assert damage_of_folder(tmp_path) is None
    (tmp_path / "a").write_text("3")
    assert damage_of_folder(tmp_path) == "a is damaged (its checksum differs)"
    assert damage_of_folder(tmp_path, "b".__eq__) is None
    (tmp_path / "checksums.json").unlink()  # as an earlier version left it
    assert damage_of_folder(tmp_path) is None


def test_records_without_a_checksum_are_read():
    assert unsealed('{"a": 1.0, "b": {"2": null}}') == unsealed(json.dumps(sealed({"a": 1.0, "b": {2: None}})))


def test_a_model_changed_on_purpose_loads_again_without_its_checksums(runs, tmp_path):
    shutil.copytree(runs.out / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(RequestError, match=r"config\.json is damaged.*delete its checksums\.json"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "checksums.json").unlink()
    assert load_model(tmp_path / "model").config.rms_norm_eps == 0.5
    save_model(load_model(tmp_path / "model"), tmp_path / "model", with_checksums=True)
    assert load_model(tmp_path / "model").config.rms_norm_eps == 0.5

"""Evaluations that are cut off and gone on with: they end as uninterrupted ones, and decode nothing twice."""

import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper_exam import Dice, ThreadedGrader, judge, paper_benchmark

from t3d.checksums import unsealed
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError, WorkError
from t3d.evaluation import evaluate, read_result, settings_to_try
from t3d.evaluation.journal import Journal
from t3d.models import load_model, load_tokenizer
from t3d.types import Decoding

BASE = Decoding(max_new_tokens=12, temperature=1.0)
SETTINGS = settings_to_try([1, 4], [], BASE, 4)
SAMPLES = 2
FILES = {"result.json", "answers.jsonl"}


@pytest.fixture(scope="module")
def engine(model_folder):
    """Its backend is thrown dice."""
    return Engine(load_model(model_folder, device="cpu"), load_tokenizer(model_folder), backend=Dice())


def take(engine, out, backend=None, benchmark=None, **options):
    """An evaluation, and the backend that it ran on."""
    engine.backend = backend or Dice()
    asked = {"samples": SAMPLES, "seed": 5, "name": "dice", "model": "a/b", **options}
    return evaluate(engine, benchmark or paper_benchmark(), asked.pop("settings", SETTINGS), out=out, **asked)


def lasting(result):
    """What of a result does not tell how fast or when it came about."""
    fields = result.model_dump(exclude={"started"})
    for setting in fields["settings"]:
        del setting["seconds"], setting["tokens_per_second"]
    return fields


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    """(folder, result, journal's bytes) of an uninterrupted evaluation."""
    out, kept = tmp_path_factory.mktemp("whole") / "out", []

    def remove(journal):
        journal.close()
        kept.append(journal._file.read_bytes())
        journal._file.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "remove", remove)
        result = take(engine, out)
    return out, result, kept[0]


def test_the_journal_makes_way_for_the_result(whole):
    out, result, journal = whole
    assert {file.name for file in out.iterdir()} == FILES
    assert read_result(out / "result.json") == result
    assert len(journal.splitlines()) == 1 + 2 * 7 * SAMPLES * len(SETTINGS)  # header, responses, verdicts


def resume_from(engine, journal, out, whole_run):
    """Go on with this journal; checks that the end is that of the whole run."""
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    (out / "journal.jsonl").write_bytes(journal)
    backend = Dice()
    result = take(engine, out, backend, resume=True)
    known = journal[: journal.rfind(b"\n") + 1].count(b'"response":')
    assert len(backend.decoded) == 7 * SAMPLES * len(SETTINGS) - known
    assert lasting(result) == lasting(whole_run[1])
    assert (out / "answers.jsonl").read_bytes() == (whole_run[0] / "answers.jsonl").read_bytes()
    assert {file.name for file in out.iterdir()} == FILES


def test_a_journal_cut_at_any_line_ends_as_the_whole(engine, whole, tmp_path):
    lines = whole[2].splitlines(keepends=True)
    for count in range(len(lines) + 1):
        resume_from(engine, b"".join(lines[:count]), tmp_path / "out", whole)


@given(place=st.floats(0, 1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_journal_torn_anywhere_ends_as_the_whole(engine, whole, tmp_path, place):
    resume_from(engine, whole[2][: int(place * len(whole[2]))], tmp_path / "out", whole)


@given(stops=st.lists(st.integers(0, 20), max_size=3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_interrupted_again_and_again(engine, whole, tmp_path_factory, stops):
    out, decoded = tmp_path_factory.mktemp("often"), []
    for stop in stops:
        backend = Dice(stop, KeyboardInterrupt())
        try:
            take(engine, out, backend, resume=True)
        except KeyboardInterrupt:
            assert (out / "journal.jsonl").exists()
        decoded += backend.decoded
    last = Dice()
    result = take(engine, out, last, resume=True)
    assert lasting(result) == lasting(whole[1])
    assert (out / "answers.jsonl").read_bytes() == (whole[0] / "answers.jsonl").read_bytes()
    assert len(decoded) + len(last.decoded) == 7 * SAMPLES * len(SETTINGS)


def test_killed_in_the_header_and_then_again(engine, whole, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(whole[2][:40])
    with pytest.raises(KeyboardInterrupt):
        take(engine, tmp_path, Dice(9, KeyboardInterrupt()), resume=True)
    backend = Dice()
    assert lasting(take(engine, tmp_path, backend, resume=True)) == lasting(whole[1])
    assert len(backend.decoded) == 7 * SAMPLES * len(SETTINGS) - 9


def test_killed_by_the_system(engine, whole, tmp_path):
    """SIGKILL in the middle of the second setting: the first one's result is there, and the rest is gone on with."""

    class Deadly(Dice):
        def run(self, requests):
            for request, generation in super().run(requests):
                if len(self.decoded) == 20:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield request, generation

    child = multiprocessing.get_context("fork").Process(target=take, args=(engine, tmp_path / "out", Deadly()))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    left = read_result(tmp_path / "out" / "result.json")
    assert [each.label for each in left.settings] == ["1 token/step"]
    assert left.settings[0].verdicts == whole[1].settings[0].verdicts
    backend = Dice()
    result = take(engine, tmp_path / "out", backend, resume=True)
    assert len(backend.decoded) == 2 * 7 * SAMPLES - 19
    assert lasting(result) == lasting(whole[1])
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES


def test_parts_of_a_run_add_up(engine, whole, tmp_path):
    """Wall time is that of the last response of each part; the first part's start and command stay."""
    lines = [unsealed(line) for line in whole[2].splitlines()]
    keep = [line for line in lines if line.get("setting") != 1 and line.get("place") != 3]
    for line in keep[1:]:
        if "response" in line:
            line["response"]["elapsed"] = 100.0 + line["place"]
    keep[0]["header"] |= {"started": "2020-01-01T00:00:00+00:00", "command": "t3d eval ..."}
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in keep))
    result = take(engine, tmp_path, resume=True)
    assert 100 + 7 * SAMPLES - 1 < result.settings[0].seconds < 100 + 7 * SAMPLES + 50
    assert result.settings[1].seconds < 50
    assert (result.started, result.command) == ("2020-01-01T00:00:00+00:00", "t3d eval ...")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 6}, "seed 5, not 6"),
        ({"samples": 3}, "samples 2, not 3"),
        ({"limit": 4}, "problems"),
        ({"shuffle": 1}, "shuffle None, not 1"),
        ({"prompt": PromptConfig(instruction="Say it.")}, "prompts"),
        ({"benchmark": paper_benchmark(make_grader=lambda: ThreadedGrader("even 2"))}, "grader 'even 1', not 'even 2'"),
        ({"benchmark": replace(paper_benchmark(), split="train")}, "split 'test', not 'train'"),
        (
            {"settings": settings_to_try([1], [], BASE, 4)},
            "label ['1 token/step', '4 tokens/step'], not ['1 token/step']",
        ),
        ({"settings": [replace(each, top_k=3) for each in SETTINGS]}, "top_k [0, 0], not [3, 3]"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split(" ")[0],
)
def test_another_evaluation_is_not_gone_on_with(engine, whole, tmp_path, change, said):
    """Neither from its journal nor from its result; the files stay as they are."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.jsonl").write_bytes(whole[2][:3000])
    for folder in (tmp_path / "begun", whole[0]):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(RequestError) as refusal:
            take(engine, folder, **change, resume=True)
        assert str(folder) in str(refusal.value)
        assert said in str(refusal.value)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_another_model_is_not_gone_on_with(whole, model_folder):
    model = load_model(model_folder, device="cpu")
    model.lm_head.weight.data += 1
    with pytest.raises(RequestError, match="model"):
        take(Engine(model, load_tokenizer(model_folder)), whole[0], resume=True)


def test_a_finished_evaluation_is_only_read(engine, whole):
    backend = Dice()
    before = {file.name: file.stat().st_mtime_ns for file in whole[0].iterdir()}
    assert take(engine, whole[0], backend, resume=True) == whole[1]
    assert backend.decoded == []
    assert {file.name: file.stat().st_mtime_ns for file in whole[0].iterdir()} == before


def test_an_evaluation_is_not_written_over(engine, whole, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(whole[2])
    for folder in (tmp_path, whole[0]):
        with pytest.raises(RequestError, match="--resume"):
            take(engine, folder)


def test_a_damaged_journal(engine, whole, tmp_path):
    lines = whole[2].splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join([*lines[:4], b"oh\n", *lines[4:]]))
    with pytest.raises(RequestError, match=r"journal.jsonl, line 5: damaged"):
        take(engine, tmp_path, resume=True)
    (tmp_path / "journal.jsonl").write_text('{"something": "else"}\n')
    with pytest.raises(RequestError, match="not a journal"):
        take(engine, tmp_path, resume=True)


def test_a_journal_of_another_version(engine, whole, tmp_path):
    """The first had no version, and no surprisal."""
    lines = [unsealed(line) for line in whole[2].splitlines()]
    del lines[0]["header"]["version"]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(RequestError, match=r"journal.jsonl: begun by another version of t3d") as refusal:
        take(engine, tmp_path, resume=True)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_full_disk_costs_nothing_that_is_written(engine, whole, tmp_path, monkeypatch):
    original = Journal._write

    def refuse(journal, line):
        if "verdict" in line and len(journal.verdicts) == 9:
            raise WorkError("cannot write: No space left on device")
        original(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", refuse)
        with pytest.raises(WorkError, match="No space"):
            take(engine, tmp_path)
    assert lasting(take(engine, tmp_path, resume=True)) == lasting(whole[1])


class LateGrader(ThreadedGrader):
    """Answers nothing before it has everything of a setting, and then the last first."""

    def __init__(self):
        super().__init__()
        self._open: list[tuple[Future, str]] = []

    def submit(self, response_text, problem):
        self._open.append((Future(), response_text))
        if len(self._open) == self.expected:
            waiting, self._open = self._open, []
            threading.Thread(target=lambda: [each.set_result(judge(text)) for each, text in waiting[::-1]]).start()
            return waiting[-1][0]
        return self._open[-1][0]


def test_late_verdicts_reach_their_answers(engine, whole, tmp_path):
    answers = [json.loads(line) for line in (whole[0] / "answers.jsonl").read_text().splitlines()]
    gradable = {sum(a["outcome"] != "not_decoded" for a in answers if a["setting"] == label) for label in labels(whole)}
    (LateGrader.expected,) = gradable  # which responses fail hangs on their seeds alone
    take(engine, tmp_path / "out", benchmark=paper_benchmark(make_grader=LateGrader))
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (whole[0] / "answers.jsonl").read_bytes()


def labels(whole_run):
    return [each.label for each in whole_run[1].settings]


def test_responses_are_graded_while_others_are_decoded(engine):
    benchmark = paper_benchmark()
    seen = []

    class Watched(Dice):
        def run(self, requests):
            for pair in super().run(requests):
                yield pair
                seen.append(len(benchmark.task.graders[-1].submitted))

    take(engine, None, Watched(), benchmark)
    assert seen == sorted(seen)
    assert 0 < seen[3] < seen[-1]


def test_a_grader_that_breaks_ends_the_evaluation(engine, whole, tmp_path):
    class Broken(ThreadedGrader):
        def submit(self, response_text, problem):
            return super().submit(None if problem.problem_id == "test/3" else response_text, problem)

    with pytest.raises(TypeError):
        take(engine, tmp_path / "out", benchmark=paper_benchmark(make_grader=Broken))
    result = take(engine, tmp_path / "out", resume=True)
    assert lasting(result) == lasting(whole[1])


def test_two_runs_at_once_in_one_folder(engine, tmp_path):
    """The second is refused, and does not harm the first."""
    refused = []

    class Meanwhile(Dice):
        def run(self, *arguments, **options):
            with pytest.raises(RequestError, match="another t3d eval is at work there"):
                take(Engine(engine.model, engine.tokenizer, backend=Dice()), tmp_path, resume=True)
            refused.append(True)
            return super().run(*arguments, **options)

    first = take(engine, tmp_path, backend=Meanwhile())
    assert refused
    assert read_result(tmp_path / "result.json") == first

"""Evaluation: the figures are recomputed here from the answers, and results survive files, tables and pictures."""

import json
from collections import Counter

import pytest

from t3d.cli import run
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.evaluation import evaluate, get_benchmark, read_result, settings_to_try, write_result
from t3d.evaluation.metrics import wilson_interval
from t3d.evaluation.report import COLUMNS, check_comparable, plot_accuracy, result_markdown
from t3d.tasks import get_task
from t3d.types import Decoding

LIMIT = 12


@pytest.mark.parametrize(
    "right, count, low, high",
    [
        (8, 10, 0.490, 0.943),  # figures of other programs
        (0, 10, 0.000, 0.278),
        (10, 10, 0.722, 1.000),
        (50, 100, 0.404, 0.596),
        (1, 1, 0.207, 1.000),
        (0, 0, 0.000, 1.000),
    ],
)
def test_wilson_interval(right, count, low, high):
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=6e-4)


def test_wilson_interval_is_symmetric_and_narrows():
    for right in range(8):
        low, high = wilson_interval(right, 7)
        assert wilson_interval(7 - right, 7) == pytest.approx((1 - high, 1 - low))
        assert 0 <= low <= right / 7 <= high <= 1
        longer = wilson_interval(10 * right, 70)
        assert longer[1] - longer[0] < high - low


def test_settings_to_try():
    base = Decoding(rule="sequential", temperature=0.5, max_new_tokens=9)
    settings = settings_to_try([1, 2, 4], [0.9, 0.5], base, model_block_size=4)
    assert [(each.rule, each.block_size, each.steps_per_block) for each in settings] == [
        ("sequential", 4, 4),
        ("sequential", 4, 2),
        ("sequential", 4, 1),
        ("low_confidence_dynamic", 4, 4),
        ("low_confidence_dynamic", 4, 4),
    ]
    assert [each.threshold for each in settings[3:]] == [0.9, 0.5]
    assert all((each.temperature, each.max_new_tokens) == (0.5, 9) for each in settings)
    wider = settings_to_try([8], [], Decoding(block_size=16), model_block_size=4)
    assert [(each.block_size, each.steps_per_block) for each in wider] == [(16, 2)]
    for wrong in (3, 0, -1, 8):
        with pytest.raises(RequestError, match=f"{wrong} does not divide the block size 4"):
            settings_to_try([wrong], [], base, model_block_size=4)


@pytest.fixture(scope="module")
def engine(model_folder):
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def evaluated(engine, tmp_path_factory):
    """(result, lines of answers.jsonl) of a model whose answers are right now and then, by a grader of ours."""
    file = tmp_path_factory.mktemp("evaluated") / "answers.jsonl"
    base = Decoding(max_new_tokens=30, temperature=1.0)
    settings = settings_to_try([1, 4], [0.2], base, engine.model.config.block_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(get_task("story")), "grade", lambda _, text, answer: (len(text) + int(answer)) % 2 == 0)
        result = evaluate(
            engine, get_benchmark("story"), settings, name="tiny", model="a/b", limit=LIMIT, seed=3, answers_file=file
        )
    return result, [json.loads(line) for line in file.read_text().splitlines()]


def test_figures_are_those_of_the_answers(evaluated):
    result, answers = evaluated
    assert [each.label for each in result.settings] == ["1 token/step", "4 tokens/step", "dynamic > 0.2"]
    assert len(answers) == 3 * LIMIT
    for setting in result.settings:
        own = [answer for answer in answers if answer["setting"] == setting.label]
        tokens, forwards = sum(each["num_tokens"] for each in own), sum(each["num_forwards"] for each in own)
        right = sum(each["right"] for each in own)
        assert right == sum((len(each["response"]) + int(each["answer"])) % 2 == 0 for each in own)
        assert 0 < right < LIMIT
        assert (setting.num_problems, setting.num_right, setting.accuracy) == (LIMIT, right, right / LIMIT)
        assert setting.interval == wilson_interval(right, LIMIT)
        assert setting.tokens_per_forward == tokens / forwards
        assert setting.mean_length == tokens / LIMIT
        assert setting.tokens_per_second > 0
        assert setting.finish_reasons == Counter(each["finish_reason"] for each in own)
        assert sum(setting.finish_reasons.values()) == LIMIT


def test_answers_are_the_benchmarks_own_problems(evaluated):
    _, answers = evaluated
    problems = get_task("story").prompts("test", LIMIT, 3)
    asked = [(each.prompt_id, each.answer) for each in problems]
    assert [(each["prompt_id"], each["answer"]) for each in answers] == asked * 3


def test_settings_of_a_result(evaluated):
    result, _ = evaluated
    full, fast, dynamic = result.settings
    assert [each.tokens_per_step for each in result.settings] == [1, 4, None]
    assert [each.threshold for each in result.settings] == [None, None, 0.2]
    assert [each.rule for each in result.settings] == 2 * ["low_confidence_static"] + ["low_confidence_dynamic"]
    assert full.tokens_per_forward < 1 < fast.tokens_per_forward < 4  # prefill counted
    assert full.tokens_per_forward < dynamic.tokens_per_forward
    assert (result.name, result.model, result.benchmark, result.seed) == ("tiny", "a/b", "story", 3)
    assert {"t3d", "torch"} <= set(result.versions)


def test_evaluation_repeats(engine, evaluated):
    result, _ = evaluated
    again = evaluate(
        engine,
        get_benchmark("story"),
        settings_to_try([1, 4], [0.2], Decoding(max_new_tokens=30, temperature=1.0), 4),
        name="tiny",
        model="a/b",
        limit=LIMIT,
        seed=3,
    )
    for old, new in zip(result.settings, again.settings, strict=True):
        assert (new.tokens_per_forward, new.mean_length) == (old.tokens_per_forward, old.mean_length)
    assert again.model_fingerprint == result.model_fingerprint


def test_result_survives_its_file(evaluated, tmp_path):
    result, _ = evaluated
    write_result(result, tmp_path / "new" / "result.json")
    assert read_result(tmp_path / "new" / "result.json") == result
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]


def test_markdown_has_a_line_a_setting(evaluated):
    result, _ = evaluated
    other = result.model_copy(update={"name": "other"})
    lines = result_markdown([result, other]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == COLUMNS
    assert set(cells[1]) == {"---"}
    assert [row[0] for row in cells[2:]] == 3 * ["tiny"] + 3 * ["other"]
    for row, setting in zip(cells[2:5], result.settings, strict=True):
        assert row[1] == setting.label
        assert row[2] == f"{100 * setting.accuracy:.1f}"
        assert row[4] == f"{setting.tokens_per_forward:.2f}"
    assert {len(row) for row in cells} == {len(COLUMNS)}


def is_picture(file):
    data = file.read_bytes()
    return data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 5000


def test_plot_is_a_picture(evaluated, tmp_path):
    result, _ = evaluated
    plot_accuracy([result, result.model_copy(update={"name": "other"})], tmp_path / "two.png")
    plot_accuracy([result], tmp_path / "one.png")
    assert is_picture(tmp_path / "two.png")
    assert is_picture(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_only_the_same_problems_compare(evaluated):
    result, _ = evaluated
    check_comparable([result, result.model_copy(update={"name": "other", "model_fingerprint": "0"})])
    fewer = [each.model_copy(update={"num_problems": 5}) for each in result.settings]
    for change in ({"seed": 4}, {"benchmark": "gsm8k"}, {"settings": fewer}):
        with pytest.raises(RequestError, match="different problems"):
            check_comparable([result, result.model_copy(update=change)])


def test_eval_and_compare_end_to_end(model_folder, tmp_path, capsys):
    words = f"eval --model {model_folder} --limit 4 --max-new-tokens 12 --device cpu --out".split()
    assert run([*words, str(tmp_path / "a"), "--name", "first"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/a: result.json, answers.jsonl, accuracy.png" in said
    assert "story, 4 problems" in said
    assert run([*words, str(tmp_path / "b"), "--tokens-per-step", "2", "--dynamic", "", "--seed", "0"]) == 0
    first, second = (read_result(tmp_path / name / "result.json") for name in "ab")
    assert [each.label for each in first.settings] == [
        "1 token/step",
        "2 tokens/step",
        "4 tokens/step",
        "dynamic > 0.9",
    ]
    assert [each.label for each in second.settings] == ["2 tokens/step"]
    assert (first.name, second.name) == ("first", "tiny")
    assert first.settings[1].tokens_per_forward == second.settings[0].tokens_per_forward
    assert is_picture(tmp_path / "a" / "accuracy.png")
    capsys.readouterr()

    files = [f"{tmp_path}/{name}/result.json" for name in "ab"]
    assert run(["compare", *files]) == 0
    said = capsys.readouterr().out
    assert "first" in said
    assert "tiny" in said
    assert run(["compare", *files, "--out", f"{tmp_path}/c"]) == 0
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["accuracy.png", "table.md"]
    assert (tmp_path / "c" / "table.md").read_text() == result_markdown([first, second])
    assert is_picture(tmp_path / "c" / "accuracy.png")

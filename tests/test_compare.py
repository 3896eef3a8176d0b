"""`t3d compare`: tables against arithmetic by hand, refusals, files that give the figures back, the plot."""

import csv
import io
import json
import math
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from rich.console import Console

from t3d.cli import run
from t3d.config import PromptConfig
from t3d.errors import RequestError, WorkError
from t3d.evaluation import EvalResult, SettingResult, write_result
from t3d.evaluation.metrics import bootstrap_interval, wilson_interval
from t3d.evaluation.report import (
    TABLES,
    accuracy_figure,
    comparable,
    measurements_of,
    paired_table,
    paper_tables,
    plot_accuracy,
    result_markdown,
    result_table,
    sharpness_table,
    write_comparison,
)
from t3d.evaluation.report.layout import Cell, Column, ResultTable, mark_best

NUM_PROBLEMS = 200
STATIC, DYNAMIC = "low_confidence_static", "low_confidence_dynamic"


def make_setting(right, tokens_per_step=None, threshold=None, **changes):
    """A setting with so many of 200 right; costs follow from the tokens per forward: tokens per step, or 2."""
    block_size = changes.get("block_size", 4)
    per_forward = float(tokens_per_step or 2)
    label = f"dynamic > {threshold:g}" if tokens_per_step is None else f"{tokens_per_step:g} tokens/step"
    figures = {
        "label": label,
        "tokens_per_step": tokens_per_step,
        "rule": DYNAMIC if tokens_per_step is None else STATIC,
        "threshold": threshold,
        "block_size": block_size,
        "steps_per_block": block_size if tokens_per_step is None else int(block_size / tokens_per_step),
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 256,
        "num_problems": NUM_PROBLEMS,
        "num_samples": 1,
        "num_right": right,
        "accuracy": right / NUM_PROBLEMS,
        "interval": wilson_interval(right, NUM_PROBLEMS),
        "pass_at_k": {1: right / NUM_PROBLEMS},
        "verdicts": {"right": right, "wrong": NUM_PROBLEMS - right},
        "num_tokens": 20_001,
        "num_forwards": round(20_001 / per_forward),
        "tokens_per_forward": per_forward,
        "mean_steps": 100.005 / per_forward,
        "measured_tokens_per_step": per_forward,
        "seconds": 10 / per_forward,
        "tokens_per_second": 2000.1 * per_forward,
        "latency_median": 1 / per_forward,
        "latency_p95": 3 / per_forward,
        "mean_length": 100.005,
        "finish_reasons": {"stop": NUM_PROBLEMS - 1, "length": 1},
    }
    return SettingResult(**{**figures, **changes})


def make_result(name, benchmark, *settings, **changes):
    facts = {
        "name": name,
        "model": f"runs/{name}",
        "model_fingerprint": f"weights of {name}",
        "benchmark": benchmark,
        "split": "test",
        "data": None,
        "seed": 0,
        "shuffle": None,
        "data_fingerprint": f"{benchmark}-problems",
        "prompt": PromptConfig(),
        "prompt_fingerprint": f"{benchmark}-prompts",
        "grader": "grader 1",
        "isolation": None,
        "device": "a GPU",
        "dtype": "bfloat16",
        "backend": "continuous",
        "batch_size": None,
        "versions": {"t3d": "1"},
        "started": "2026-11-23T00:00:00Z",
        "command": "t3d eval",
        "settings": list(settings),
    }
    return EvalResult(**{**facts, **changes})


def static(*rights, numbers=(1, 2, 4), **changes):
    """Settings at 1, 2 and 4 tokens per step."""
    return [make_setting(right, number, **changes) for right, number in zip(rights, numbers, strict=False)]


def compare(*results, table="all"):
    """Table -> ResultTable."""
    named = {f"{index}.json": result for index, result in enumerate(results)}
    return {each.name: each for each in paper_tables(comparable(named), table)}


def texts(table):
    """Rows of what is shown, the best of a group between asterisks."""
    return [
        [f"*{cell.text}*" if cell.is_best else cell.text for cell in row] for group in table.groups for row in group
    ]


def notes(table):
    return " ".join(table.notes)


TEACHER = make_result("teacher", "gsm8k", *static(180, 120, 40), make_setting(160, threshold=0.9))
STUDENT = make_result("student", "gsm8k", *static(178, 160, 140), make_setting(170, threshold=0.9))
TEACHER_MBPP = make_result("teacher", "mbpp", *static(100, 60, 20))
STUDENT_MBPP = make_result("student", "mbpp", *static(90, 80, 70))
ALL_FOUR = (TEACHER, TEACHER_MBPP, STUDENT, STUDENT_MBPP)


# --- the tables ---


def test_few_step_table_by_hand():
    table = compare(*ALL_FOUR)["few-step"]
    assert [column.name for column in table.columns] == ["TokPS", "method", "gsm8k", "mbpp", "average"]
    assert [len(group) for group in table.groups] == [2, 2]
    assert texts(table) == [
        ["2", "teacher", "60.0 (53.1–66.5)", "30.0 (24.1–36.7)", "45.0"],  # (60 + 30) / 2
        ["2", "student", "*80.0 (73.9–85.0)*", "*40.0 (33.5–46.9)*", "*60.0*"],
        ["4", "teacher", "20.0 (15.0–26.1)", "10.0 (6.6–14.9)", "15.0"],
        ["4", "student", "*70.0 (63.3–75.9)*", "*35.0 (28.7–41.8)*", "*52.5*"],
    ]
    assert "gsm8k: 200 problems, graded by grader 1; mbpp: 200 problems" in notes(table)
    assert "Too close" not in notes(table)


def test_full_step_table_by_hand():
    table = compare(*ALL_FOUR)["full-step"]
    assert "against teacher in points" in table.title
    assert texts(table) == [
        ["teacher", "*90.0 (85.1–93.4)*", "*50.0 (43.1–56.9)*", "*70.0*"],
        ["student", "89.0 (83.9–92.6), -1.0", "45.0 (38.3–51.9), -5.0", "67.0, -3.0"],  # (89 + 45) / 2 = 67
    ]
    assert "Too close to call, the best two inside each other's 95% interval: gsm8k; mbpp." in table.notes
    changes = {(each["method"], each["benchmark"]): each["change"] for each in table.records}
    assert changes == pytest.approx(
        {("teacher", "gsm8k"): 0, ("teacher", "mbpp"): 0, ("student", "gsm8k"): -1, ("student", "mbpp"): -5}
    )


def test_change_has_a_sign_and_no_minus_zero():
    slightly = make_setting(180, 1, accuracy=0.8997)
    better = make_setting(190, 1)
    table = compare(TEACHER, make_result("a", "gsm8k", slightly), make_result("b", "gsm8k", better))["full-step"]
    assert [row[1].split(", ")[-1].strip("*") for row in texts(table)[1:]] == ["+0.0", "+5.0"]


def test_dynamic_table_by_hand():
    eager = make_setting(150, threshold=0.7, tokens_per_forward=3.126, mean_length=98.06, mean_steps=31.94)
    table = compare(TEACHER, STUDENT, make_result("student", "mbpp", eager), make_result("eager", "gsm8k", eager))[
        "dynamic"
    ]
    assert [column.name for column in table.columns] == [
        *("benchmark", "decoding", "method", "tokens/s", "latency s (p95)", "steps", "TPF", "length"),
        "acc. % (95% interval)",
    ]
    cost = ["4,000", "0.50 (1.50)", "31.9", "3.13", "98.1"]
    usual_cost = ["4,000", "0.50 (1.50)", "50.0", "2.00", "100.0"]
    assert texts(table) == [  # benchmarks in order of appearance, thresholds upwards
        ["gsm8k", "dynamic > 0.7", "eager", *cost, "75.0 (68.6–80.5)"],
        ["gsm8k", "dynamic > 0.9", "teacher", *usual_cost, "80.0 (73.9–85.0)"],
        ["gsm8k", "dynamic > 0.9", "student", *usual_cost, "*85.0 (79.4–89.3)*"],
        ["mbpp", "dynamic > 0.7", "student", *cost, "75.0 (68.6–80.5)"],
    ]
    assert "Too close" not in notes(table)  # the teacher's interval ends at 84.96
    close = make_result("close", "gsm8k", make_setting(161, threshold=0.9))
    assert "95% interval: gsm8k at dynamic > 0.9." in notes(compare(TEACHER, close)["dynamic"])


def test_aup_by_hand():
    table = compare(TEACHER, STUDENT)["aup"]

    def counted(accuracy):
        return accuracy * math.exp(-3 * (1 - accuracy / 90))  # 90: the teacher's, the best of all

    teacher = 1 * 90.0  # 60 and 20 are more than 5 below
    student = 1 * 89.0  # 80 and 70 too
    dynamic = {"teacher": 2 * 80.0, "student": 2 * 85.0}
    assert texts(table) == [
        ["static", "teacher", f"*{teacher:.1f}*"],
        ["static", "student", f"{student:.1f}"],
        ["dynamic", "teacher", f"{dynamic['teacher']:.1f}"],
        ["dynamic", "student", f"*{dynamic['student']:.1f}*"],
    ]
    steady = compare(TEACHER, make_result("steady", "gsm8k", *static(176, 174, 170)))["aup"]
    area = 1 * 88 + (2 - 1) * (counted(87) + counted(88)) / 2 + (4 - 2) * (counted(85) + counted(87)) / 2
    assert steady.records[1]["aup"] == pytest.approx(area)
    assert steady.records[1]["kind"] == "static"
    assert steady.records[1]["settings"] == "1 tokens/step; 2 tokens/step; 4 tokens/step"
    assert {each["best_accuracy"] for each in steady.records} == {90.0}


def test_aup_says_where_curves_are_of_different_settings():
    short = make_result("short", "gsm8k", *static(170, 160))
    said = notes(compare(TEACHER, STUDENT, short)["aup"])
    assert "gsm8k, static settings: areas under curves of different settings hardly compare" in said
    assert "(teacher, student at 1 tokens/step, 2 tokens/step, 4 tokens/step; short at 1 tokens/step, 2 tokens" in said
    assert "hardly compare" not in notes(compare(TEACHER, STUDENT)["aup"])


def test_what_was_not_measured_is_missing():
    tables = compare(TEACHER, TEACHER_MBPP, STUDENT, make_result("other", "mbpp", *static(104)))
    assert texts(tables["few-step"])[1] == ["2", "student", "*80.0 (73.9–85.0)*", "–", "–"]
    assert texts(tables["full-step"])[1:] == [
        ["student", "89.0 (83.9–92.6), -1.0", "–", "–"],
        ["other", "–", "*52.0 (45.1–58.8), +2.0*", "–"],
    ]
    without_baseline = compare(make_result("first", "mbpp", *static(100)), STUDENT)["full-step"]
    assert texts(without_baseline)[1] == ["student", "–", "89.0 (83.9–92.6)", "–"]  # nothing to change against
    assert without_baseline.records[1]["change"] is None


def test_equal_ones_are_both_the_best_and_a_lone_one_is_not():
    equal = compare(TEACHER, make_result("twin", "gsm8k", *static(180, 120, 40)))
    assert [row[2] for row in texts(equal["few-step"])] == ["*60.0 (53.1–66.5)*"] * 2 + ["*20.0 (15.0–26.1)*"] * 2
    alone = compare(TEACHER)
    assert not any("*" in text for table in alone.values() for row in texts(table) for text in row)
    assert list(alone) == ["few-step", "full-step", "dynamic", "aup"]
    assert "Too close" not in "".join(map(notes, alone.values()))


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=3, max_size=3), min_size=1, max_size=5))
def test_marks_are_on_the_highest_of_each_column(scores):
    marked = mark_best([[Cell(str(score), score) for score in row] for row in scores])
    for before, after in zip(zip(*scores, strict=True), zip(*marked, strict=True), strict=True):
        known = [score for score in before if score is not None]
        expected = [len(known) > 1 and score == max(known) for score in before]
        assert [cell.is_best for cell in after] == expected
        assert [cell.score for cell in after] == list(before)


def test_tables_without_settings_are_left_out_and_refused_by_name():
    full = make_result("full", "gsm8k", make_setting(100, 1))
    assert list(compare(full)) == ["full-step", "aup"]
    fast = make_result("fast", "gsm8k", make_setting(100, 2))
    for result, table, option in (
        (full, "few-step", "--tokens-per-step 2,4"),
        (fast, "full-step", "--tokens-per-step 1"),
        (full, "dynamic", "--threshold 0.9"),
    ):
        with pytest.raises(RequestError, match=f"--table {table}.*{option}"):
            compare(result, table=table)
    assert list(compare(fast, table="few-step")) == ["few-step"]
    with pytest.raises(RequestError, match="--table 'table1' is unknown: use one of few-step, full-step, dynamic, aup"):
        compare(full, table="table1")


def test_unequal_conditions_are_said_where_speed_is_shown():
    slow = STUDENT.model_copy(update={"device": "a CPU", "dtype": "float32", "backend": "plain", "batch_size": 8})
    note = (
        "tokens/s and latency do not compare on gsm8k: teacher on a GPU, bfloat16, continuous backend, batches as "
        "memory allows; student on a CPU, float32, plain backend, batches of 8."
    )
    assert note in compare(TEACHER, slow)["dynamic"].notes
    assert note in result_table([TEACHER, slow]).notes
    assert "do not compare" not in notes(compare(TEACHER, STUDENT)["dynamic"])


def test_overview_of_one_result():
    table = result_table([STUDENT])
    assert table.title == "student: gsm8k, 200 problems"
    ends = "length 1, stop 199"
    assert texts(table) == [
        ["1 tokens/step", "89.0 (83.9–92.6)", "2,000", "1.00 (3.00)", "100.0", "1.00", "100.0", ends],
        ["2 tokens/step", "80.0 (73.9–85.0)", "4,000", "0.50 (1.50)", "50.0", "2.00", "100.0", ends],
        ["4 tokens/step", "70.0 (63.3–75.9)", "8,000", "0.25 (0.75)", "25.0", "4.00", "100.0", ends],
        ["dynamic > 0.9", "85.0 (79.4–89.3)", "4,000", "0.50 (1.50)", "50.0", "2.00", "100.0", ends],
    ]
    sampled = make_setting(80, 2, num_samples=4, finish_reasons={"stop": 800})
    table = result_table([make_result("student", "gsm8k", sampled)])
    assert table.title == "student: gsm8k, 200 problems with 4 responses each"
    assert "end" not in [column.name for column in table.columns]  # all ended alike
    both = result_table([TEACHER, STUDENT])
    assert both.title == "gsm8k, 200 problems"
    assert [row[0] for row in texts(both)] == [*["teacher"] * len(TEACHER.settings), *["student"] * 4]
    assert result_markdown([STUDENT]) == result_table([STUDENT]).markdown()


# --- what sampling finds ---


def sampled(right, number=2, **changes):
    """A setting with six samples a problem, at temperature 1."""
    figures = {
        "num_samples": 6,
        "temperature": 1.0,
        "pass_at_k": {1: right / NUM_PROBLEMS, 2: 0.7, 4: 0.875},
        "majority_accuracy": 0.8125,
        "majority_interval": (0.75, 0.8665),
        "distinct_answers": 1.625,
        "distinct_responses": 0.725,
        "nats_per_token": 0.21849,
    }
    return make_setting(right, number, **{**figures, **changes})


def test_sharpness_table_by_hand():
    sharp = sampled(170, majority_accuracy=0.85, majority_interval=(0.8, 0.9), distinct_answers=1.125)
    program = sampled(100, majority_accuracy=None, majority_interval=None, distinct_answers=None, nats_per_token=None)
    teacher = make_result("teacher", "gsm8k", sampled(120))
    student = make_result("student", "gsm8k", sharp, sampled(150, 4))
    table = compare(teacher, student, make_result("student", "mbpp", program))["sharpness"]
    assert [column.name for column in table.columns] == [
        *("benchmark", "decoding", "method", "pass@1", "pass@4", "maj@6", "answers", "texts %", "nats")
    ]
    assert [len(group) for group in table.groups] == [2, 1, 1]
    usual = ["87.5", "81.2 (75.0–86.7)", "1.62", "72.5", "0.218"]
    assert texts(table) == [
        ["gsm8k", "2 tokens/step", "teacher", "60.0", *usual],
        ["gsm8k", "2 tokens/step", "student", "*85.0*", "87.5", "*85.0 (80.0–90.0)*", "1.12", "72.5", "0.218"],
        ["gsm8k", "4 tokens/step", "student", "75.0", *usual],
        ["mbpp", "2 tokens/step", "student", "50.0", "87.5", "–", "–", "72.5", "–"],
    ]
    assert "gsm8k: 200 problems with 6 responses each" in notes(table)
    assert "low_confidence_static keeps the draws that it is sure of" in notes(table)
    first, *_ = table.records
    assert (first["majority_interval.low"], first["majority_interval.high"]) == (0.75, 0.8665)


def test_the_majority_of_benchmarks_with_other_numbers_of_samples_is_named_for_none_of_them():
    few = sampled(100, num_samples=2, pass_at_k={1: 0.5, 2: 0.7})
    table = sharpness_table(
        measurements_of([make_result("student", "gsm8k", sampled(170)), make_result("student", "mbpp", few)])
    )
    assert [column.name for column in table.columns][2:5] == ["pass@1", "pass@4", "maj@n"]
    assert [row[3] for row in texts(table)] == ["87.5", "–"]


def test_sharpness_of_one_model_needs_no_name_and_fits_a_terminal():
    settings = [sampled(right, number, num_samples=16) for right, number in ((180, 1), (120, 2))]
    dynamic = sampled(150, None, threshold=0.9, num_samples=16)
    own = make_result("student", "gsm8k", *settings, dynamic, sampled(90, 4, rule="sequential"))
    table = sharpness_table(measurements_of([own]))
    assert [column.name for column in table.columns][:2] == ["decoding", "pass@1"]
    for each in (table, result_table([own])):
        lines = shown(each, width=80).splitlines()
        words = {word for group in each.groups for row in group for cell in row for word in cell.text.split()}
        assert all(any(word in line for line in lines) for word in words)
    hot = make_result("student", "gsm8k", sampled(90), sampled(80, temperature=0.5))
    assert [row[1] for row in texts(sharpness_table(measurements_of([hot])))] == [
        "student, temperature 1",
        "student, temperature 0.5",
    ]
    assert not sharpness_table(measurements_of([TEACHER])).groups
    with pytest.raises(RequestError, match=r"--table sharpness.*--samples 16 --temperature 1"):
        compare(TEACHER, table="sharpness")


# --- two models on the same problems ---


def answering(rights, number=2, **changes):
    """A setting that got these of four problems right: "1100"."""
    return make_setting(rights.count("1"), number, num_problems=4, right_answers=rights, **changes)


def test_paired_table_by_hand():
    base = make_result("base", "gsm8k", answering("1100"), answering("0000", 4))
    better = make_result("better", "gsm8k", answering("0111"), answering("0110", 4), answering("1111", 1))
    alike = make_result("alike", "gsm8k", answering("1100"))
    measurements = comparable({"a": base, "b": better, "c": alike})
    table = paired_table(measurements, "base")
    assert [column.name for column in table.columns] == [
        *("decoding", "method", "acc. % (95% interval)", "change", "won", "lost", "p")
    ]
    assert [[row[place] for place in (0, 1, 4, 5, 6)] for row in texts(table)] == [
        ["2 tokens/step", "better", "2", "1", "1.000"],  # 2 (C(3, 0) + C(3, 1)) / 8
        ["2 tokens/step", "alike", "0", "0", "1.000"],
        ["4 tokens/step", "better", "2", "0", "0.500"],  # 2 / 2^2
    ]
    low, high = bootstrap_interval([-1, 0, 1, 1])
    first = table.records[0]
    assert (first["difference"], first["low"], first["high"]) == (25.0, 100 * low, 100 * high)
    assert texts(table)[0][3] == f"+25.0 ({100 * low:+.1f}…{100 * high:+.1f})"
    assert (first["method"], first["base"], first["p"]) == ("better", "base", 1.0)
    reach = 100 * wilson_interval(0, 4)[1]
    assert texts(table)[1][3] == f"+0.0 ({-reach:+.1f}…{reach:+.1f})"


def test_pairs_of_several_samples_are_of_shares():
    """Problems are drawn with their samples; McNemar's test knows no samples."""
    one = make_result("one", "gsm8k", answering("11100000", num_samples=2))
    other = make_result("other", "mbpp", answering("1000")), make_result("one", "mbpp", answering("1100"))
    base = make_result("base", "gsm8k", answering("10000010", num_samples=2))
    table = paired_table(comparable(dict(zip("abcd", (one, base, *other), strict=True))), "base")
    low, high = bootstrap_interval([0.5, 0.5, 0, -0.5])
    assert texts(table)[0][-3:] == ["–", "–", "–"]
    assert table.records[0]["difference"] == 12.5
    assert (table.records[0]["low"], table.records[0]["high"]) == (100 * low, 100 * high)
    assert len(table.records) == 1  # the base was not measured on mbpp


def test_unpaired_models_are_refused():
    base, greedy = make_result("base", "gsm8k", answering("1100")), make_result("a", "gsm8k", answering("1100", 4))
    old = make_result("old", "gsm8k", answering("1100").model_copy(update={"right_answers": None}))
    for results, name, said in (
        ((base, greedy), "nobody", "--paired 'nobody' is none of the models compared: use one of base, a"),
        ((base, greedy), "base", "--paired base: no other model was measured at one of its settings"),
        ((base, old), "base", "the result of old on gsm8k, by an earlier version of t3d,"),
    ):
        with pytest.raises(RequestError, match=said) as refusal:
            paired_table(measurements_of(results), name)
        assert "\n" not in str(refusal.value)


# --- what may stand side by side ---


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data_fingerprint": "fewer"}, ["data (200 problems gsm8k-problems / 200 problems fewer)"]),
        ({"grader": "grader 2"}, ["grader (grader 1 / grader 2)"]),
        ({"prompt_fingerprint": "p2"}, ["prompts (default form, gsm8k-prompts / default form, p2)"]),
        (
            {"prompt_fingerprint": "p2", "prompt": PromptConfig(style="plain", instruction="Think.")},
            ["prompts (default form, gsm8k-prompts / style 'plain', instruction 'Think.', p2)"],
        ),
        ({"settings": [make_setting(100, 2, num_samples=4)]}, ["samples (1 / 4)"]),
        (
            {"data_fingerprint": "fewer", "prompt_fingerprint": "p2", "grader": "grader 2"},  # other prompts follow
            ["data (200 problems gsm8k-problems / 200 problems fewer), grader (grader 1 / grader 2);"],
        ),
        (
            {"data_fingerprint": "fewer", "prompt_fingerprint": "p2", "prompt": PromptConfig(style="raw")},
            ["data (", "prompts (default form / style 'raw')"],
        ),
    ],
)
def test_other_questions_are_refused(changes, words):
    results = {"a/result.json": TEACHER, "b/result.json": STUDENT.model_copy(update=changes)}
    with pytest.raises(RequestError) as refusal:
        comparable(results)
    said = str(refusal.value)
    assert said.startswith(
        "a/result.json (teacher) and b/result.json (student) do not compare on gsm8k: they differ in "
    )
    assert all(each in said for each in words)
    named = [word for word in ("data (", "prompts (", "grader (", "samples (") if word in said]
    assert named == [word for word in named if any(word in each for each in words)]
    assert "\n" not in said


@pytest.mark.parametrize(
    "changes",
    [{"isolation": "bubblewrap"}, {"device": "a CPU"}, {"seed": 7}, {"versions": {}}, {"data": "a/copy.jsonl"}],
)
def test_what_does_not_change_the_questions_may_differ(changes):
    assert len(comparable({"a": TEACHER, "b": STUDENT.model_copy(update=changes)})) == 8


def test_benchmarks_need_not_agree():
    other = make_result("student", "mbpp", *static(1), grader="programs 1", prompt=PromptConfig(style="raw"))
    assert len(comparable({"a": TEACHER, "b": other})) == 5


def test_one_name_is_one_model():
    other = TEACHER_MBPP.model_copy(update={"model_fingerprint": "new weights"})
    with pytest.raises(
        RequestError, match=r"a and b call two models 'teacher' \(weights weights of teacher / new .*--name"
    ):
        comparable({"a": TEACHER, "b": other})


def test_settings_of_one_method_are_merged():
    parts = [TEACHER.model_copy(update={"settings": [setting]}) for setting in TEACHER.settings]
    whole, merged = compare(TEACHER, STUDENT), compare(*parts, STUDENT)
    assert [texts(table) for table in merged.values()] == [texts(table) for table in whole.values()]
    assert [table.csv() for table in merged.values()] == [table.csv() for table in whole.values()]


def test_a_setting_measured_twice_is_refused():
    again = TEACHER.model_copy(update={"settings": [make_setting(119, 2)]})
    with pytest.raises(
        RequestError, match=r"a and b both measure 'teacher' on gsm8k at 2 tokens/step: .* another --name"
    ):
        comparable({"a": TEACHER, "b": again})
    twice = TEACHER.model_copy(update={"settings": [TEACHER.settings[0]] * 2})
    with pytest.raises(RequestError, match="a and a both measure"):
        comparable({"a": twice})


def test_decoding_is_named_where_it_differs_on_a_benchmark():
    hot = make_result("hot", "gsm8k", make_setting(100, 2, temperature=1.0), make_setting(100, threshold=0.9))
    code = make_result("teacher", "mbpp", make_setting(100, 2, temperature=0.5, max_new_tokens=512))
    few = texts(compare(TEACHER, hot, code)["few-step"])
    assert [row[1] for row in few[:3]] == ["teacher, temperature 0", "hot, temperature 1", "teacher, temperature 0.5"]
    assert [row[1] for row in texts(compare(TEACHER, hot)["dynamic"])] == ["teacher", "hot"]
    alone = compare(TEACHER, code)["few-step"]  # another temperature on another benchmark sets no row apart
    assert texts(alone)[0] == ["2", "teacher", "60.0 (53.1–66.5)", "50.0 (43.1–56.9)", "55.0"]


decodings = st.fixed_dictionaries(
    {
        "rule": st.sampled_from([STATIC, "sequential", DYNAMIC, "entropy_bounded"]),
        "block_size": st.sampled_from([4, 8]),
        "tokens_per_step": st.sampled_from([1, 2, 4]),
        "threshold": st.sampled_from([0.5, 0.9]),
        "entropy_bound": st.sampled_from([0.1, 0.5]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "top_k": st.sampled_from([0, 10]),
        "top_p": st.sampled_from([0.9, 1.0]),
        "max_new_tokens": st.sampled_from([64, 256]),
    }
)


def setting_of(decoding):
    is_dynamic = decoding["rule"] in (DYNAMIC, "entropy_bounded")
    changes = {"steps_per_block": decoding["block_size"] // decoding["tokens_per_step"], **decoding}
    changes["entropy_bound"] = decoding["entropy_bound"] if decoding["rule"] == "entropy_bounded" else None
    changes["threshold"] = decoding["threshold"] if decoding["rule"] == DYNAMIC else None
    changes["tokens_per_step"] = None if is_dynamic else decoding["tokens_per_step"]
    return make_setting(100, changes.pop("tokens_per_step"), changes.pop("threshold") or 0.0).model_copy(update=changes)


@given(st.lists(decodings, min_size=1, max_size=8))
def test_no_two_settings_share_a_row(chosen):
    settings = [setting_of(decoding) for decoding in chosen]
    different = [setting for index, setting in enumerate(settings) if setting not in settings[:index]]
    measurements = comparable({"a": make_result("m", "gsm8k", *different)})
    own = [(each.series, each.setting) for each in measurements]
    places = {(series, each.tokens_per_step, each.threshold, each.entropy_bound) for series, each in own}
    assert len(places) == len(different)


# --- three forms of a table ---


def test_csv_gives_the_results_own_figures_back():
    tables = compare(*ALL_FOUR)
    results = {(result.name, result.benchmark): result for result in ALL_FOUR}
    rows = [
        row for name in ("few-step", "full-step", "dynamic") for row in csv.DictReader(io.StringIO(tables[name].csv()))
    ]
    assert len(rows) == sum(len(result.settings) for result in ALL_FOUR)
    seen = []
    for row in rows:
        result = results[row["method"], row["benchmark"]]
        [setting] = [each for each in result.settings if each.label == row["label"]]
        seen.append((row["method"], row["benchmark"], row["label"]))
        own = setting.model_dump(mode="json")
        low, high = own.pop("interval")
        assert (own.pop("majority_interval"), own.pop("right_answers")) == (None, None)
        assert (float(row["interval.low"]), float(row["interval.high"])) == (low, high)
        for name, value in own.items():
            if isinstance(value, dict):
                assert {key: json.loads(row[f"{name}.{key}"]) for key in value} == value
            elif isinstance(value, int | float):
                assert float(row[name]) == value
            else:
                assert row[name] == (value or "")
        assert (row["grader"], row["device"], row["batch_size"]) == ("grader 1", "a GPU", "")
    assert len(set(seen)) == len(rows)


def parsed(markdown):
    """Rows of the tables in a Markdown text: header and body, as the text of each cell, bold between asterisks."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            rows[-1].append("".join("*" if each.type.startswith("strong") else each.content for each in token.children))
    return rows


def test_markdown_is_the_same_table():
    for table in compare(*ALL_FOUR).values():
        assert parsed(table.markdown()) == [[column.name for column in table.columns], *texts(table)]
        section = table.section()
        assert section.startswith(f"## {table.title}\n\n| ")
        assert parsed(section) == parsed(table.markdown())
        bullets = [token for token in MarkdownIt("commonmark").parse(section) if token.type == "list_item_open"]
        assert len(bullets) == len(table.notes)


@pytest.mark.parametrize("name", ["a|b", "*bold*", "under_score_d", "<b>", "[red]x[/red]", "`code`", "back\\|slash"])
def test_odd_names_stay_what_they_are(name):
    odd = make_result(name, "gsm8k", *static(178, 160, 140))
    table = compare(TEACHER, odd)["few-step"]
    assert parsed(table.markdown())[2][1] == name
    assert name in shown(table, width=200)
    assert list(csv.DictReader(io.StringIO(table.csv())))[-1]["method"] == name


def shown(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_terminal_shows_the_same_cells():
    for table in compare(*ALL_FOUR).values():
        lines = shown(table, width=240).splitlines()
        for group in table.groups:
            for row in group:
                assert any(all(cell.text in line for cell in row) for line in lines)


@pytest.mark.parametrize("width", [50, 80, 100, 120])
def test_narrow_terminals_fold_and_lose_nothing(width):
    long = make_result(
        "a student with a name that goes on and on", "gsm8k", *static(178, 160, 140), *STUDENT.settings[3:]
    )
    for table in compare(*ALL_FOUR, long, make_result("teacher", "humaneval", *static(1, 2, 3))).values():
        narrow, wide = shown(table, width), shown(table, width=1000)
        assert max(map(len, narrow.splitlines())) <= width
        assert Counter("".join(narrow.split()).replace("─", "")) == Counter("".join(wide.split()).replace("─", ""))


def test_figures_are_folded_between_words_where_that_is_possible():
    table = ResultTable(
        "t", "t", [Column("name", is_text=True), Column("acc.")], [[[Cell("n" * 40), Cell("12.3 (4.5–6.7)")]]], [], []
    )
    assert "(4.5–6.7)" in shown(table, width=30)
    assert "12.3 (4.5–6.7)" in shown(table, width=80)


# --- the picture ---


def drawn(*results):
    """Panel title -> {(series, whether dynamic): its line}, of the figure; and the figure."""
    figure = accuracy_figure(measurements_of(results))
    panels = {}
    for axes in figure.axes:
        bars = {}
        for container in axes.containers:
            line = container.lines[0]
            bars[container.get_label(), line.get_markerfacecolor() == "white"] = line
        panels[axes.get_title()] = bars
    return panels, figure


def test_plot_has_a_panel_a_benchmark_and_a_line_a_method():
    panels, figure = drawn(*ALL_FOUR)
    assert list(panels) == ["gsm8k", "mbpp"]
    assert set(panels["gsm8k"]) == {("teacher", False), ("teacher", True), ("student", False), ("student", True)}
    assert set(panels["mbpp"]) == {("teacher", False), ("student", False)}
    line = panels["gsm8k"]["student", False]
    assert line.get_xdata().tolist() == [1, 2, 4]
    assert line.get_ydata().tolist() == pytest.approx([89, 80, 70])
    assert panels["gsm8k"]["teacher", True].get_ydata().tolist() == pytest.approx([80])
    colours = [{to_hex(bars[name, False].get_color()) for bars in panels.values()} for name in ("teacher", "student")]
    assert [len(each) for each in colours] == [1, 1]  # a method keeps its colour
    assert colours[0] != colours[1]
    assert to_hex(panels["gsm8k"]["teacher", True].get_color()) in colours[0]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "student", "dynamic rule"]


def test_plot_of_one_method_without_dynamic_settings():
    panels, figure = drawn(STUDENT_MBPP)
    assert list(panels["mbpp"]) == [("student", False)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["student"]


def test_bars_are_the_intervals_and_stay_in_the_panel():
    [axes] = drawn(make_result("m", "gsm8k", *static(0, 200)))[1].axes
    segments = axes.containers[0].lines[2][0].get_segments()
    for (lower, upper), right in zip(segments, (0, 200), strict=True):
        low, high = wilson_interval(right, NUM_PROBLEMS)
        assert (lower[1], upper[1]) == pytest.approx((100 * low, 100 * high), abs=1e-9)
    bottom, top = axes.get_ylim()
    assert -2 <= bottom < 0 < 100 < top <= 102


def labels_of(figure):
    """(text, box) of everything that is written in a figure, tick labels of one panel aside."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    written = [*figure.legends[0].get_texts()]
    for axes in figure.axes:
        written += [axes.title, axes.xaxis.label, axes.yaxis.label]
    return [(each.get_text(), each.get_window_extent()) for each in written if each.get_text()]


@pytest.mark.parametrize("num_benchmarks", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "name", ["m", "a method with a very long name, of three rounds at a small learning rate, block 8 "]
)
def test_labels_do_not_overlap(num_benchmarks, name):
    settings = [*static(150, 120, 90), make_setting(140, threshold=0.9)]
    results = [make_result(f"{name}{n}", f"bench{b}", *settings) for n in range(9) for b in range(num_benchmarks)]
    figure = accuracy_figure(measurements_of(results))
    labels = labels_of(figure)
    assert len(labels) >= 10 + num_benchmarks
    for (text, box), (other, other_box) in combinations(labels, 2):
        assert not box.overlaps(other_box), f"{text} / {other}"
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for _, box in labels)
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert min(panel.height for panel in panels) > 2 * figure.dpi  # the legend takes no panel's room
    assert not any(panel.overlaps(box) for panel in panels for _, box in labels)


# --- files and the command ---


def test_comparison_is_a_folder_of_files(tmp_path):
    measurements = comparable(dict(zip("abcd", ALL_FOUR, strict=True)))
    tables = paper_tables(measurements)
    names = write_comparison(measurements, tables, tmp_path)
    assert sorted(names) == sorted(each.name for each in tmp_path.iterdir())
    measured = set(TABLES) - {"sharpness"}
    assert set(names) == {"tables.md", "accuracy.png", "accuracy.svg", *(f"{name}.csv" for name in measured)}
    text = (tmp_path / "tables.md").read_text()
    assert parsed(text) == [row for table in tables for row in parsed(table.markdown())]
    assert "(accuracy.png)" in text
    assert all((tmp_path / f"{table.name}.csv").read_text() == table.csv() for table in tables)
    assert is_png(tmp_path / "accuracy.png")
    assert b"<svg" in (tmp_path / "accuracy.svg").read_bytes()


def is_png(file):
    data = file.read_bytes()
    return data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 5000


def test_disk_that_refuses(tmp_path):
    with pytest.raises(WorkError, match="gone"):
        plot_accuracy([TEACHER], tmp_path / "gone" / "accuracy.png")
    measurements = measurements_of([TEACHER])
    with pytest.raises(WorkError, match=r"--out .*gone"):
        write_comparison(measurements, paper_tables(measurements), tmp_path / "gone")


@pytest.fixture
def folder(tmp_path):
    """Results as t3d eval leaves them: of one benchmark, and of two."""
    write_result(TEACHER, tmp_path / "teacher" / "result.json")
    write_result(STUDENT, tmp_path / "student" / "gsm8k" / "result.json")
    write_result(STUDENT_MBPP, tmp_path / "student" / "mbpp" / "result.json")
    return tmp_path


def test_compare_command(folder, capsys):
    out = folder / "out"
    assert run(["compare", str(folder / "teacher"), str(folder / "student"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert all(
        words in said for words in ("Few-step", "Full-step", "Dynamic", "AUP", f"{out}: tables.md, few-step.csv")
    )
    expected = compare(TEACHER, STUDENT, STUDENT_MBPP)
    assert all((out / f"{name}.csv").read_text() == table.csv() for name, table in expected.items())
    assert is_png(out / "accuracy.png")


def test_compare_command_shows_one_table_and_takes_a_file_once(folder, capsys):
    file = str(folder / "teacher" / "result.json")
    assert run(["compare", file, str(folder / "teacher"), "--table", "full-step"]) == 0
    said = capsys.readouterr().out
    assert "Full-step" in said
    assert "Few-step" not in said


def test_compare_command_pairs(tmp_path, capsys):
    for name, rights in (("base", "1100"), ("better", "0111")):
        write_result(make_result(name, "gsm8k", answering(rights)), tmp_path / name / "result.json")
    places = [str(tmp_path / name) for name in ("base", "better")]
    assert run(["compare", *places, "--table", "few-step", "--paired", "base", "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(words in said for words in ("Few-step", "Against base on the same problems", "+25.0", "paired.csv"))
    rows = list(csv.DictReader((tmp_path / "out" / "paired.csv").open()))
    assert [(row["method"], row["base"], row["won"], row["lost"]) for row in rows] == [("better", "base", "2", "1")]
    assert run(["compare", *places, "--paired", "best"]) == 2
    assert "--paired 'best' is none of the models" in capsys.readouterr().err


def test_compare_command_refuses(folder, capsys):
    (folder / "empty").mkdir()
    (folder / "text.json").write_text("{}")
    write_result(STUDENT.model_copy(update={"grader": "grader 2"}), folder / "regraded.json")
    for arguments, words in (
        (["teacher", "--table", "fast"], "--table 'fast' is unknown"),
        (["empty"], "no result.json in this folder"),
        (["nowhere"], "No such file"),
        (["text.json"], "not a result of t3d eval"),
        (["teacher", "regraded.json", "--out", "made"], "they differ in grader (grader 1 / grader 2)"),
    ):
        places = [word if word.startswith("--") or word == "fast" else str(folder / word) for word in arguments]
        assert run(["compare", *places]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert words in said.err
        assert said.err.count("\n") == 1
    assert not (folder / "made").exists()

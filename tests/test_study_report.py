"""The report of a study: figures worked out here from made-up answers, and verdicts by hand."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from study_runs import HOPELESS, study_fields, study_of

from t3d.cli import run
from t3d.errors import RequestError
from t3d.study.report import write_report
from t3d.study.report.claims import claims_table, verdict_of
from t3d.study.report.costs import cost_table
from t3d.study.report.entries import Figure, chosen_lr, compare, entries_of
from t3d.study.report.pictures import pictures, spread
from t3d.study.report.tables import ablation_table, dynamic_table, equal_time_table, rate_table, static_table
from t3d.study.report.write import incomplete
from t3d.study.rows import (
    ROWS_FILE,
    CurvePoint,
    Row,
    SettingRow,
    Start,
    StudyRows,
    Training,
    pack_bits,
    read_rows,
    write_rows,
)

FULL, FEW, DYNAMIC = "1 token/step", "4 tokens/step", "dynamic > 0.5"


def setting(label, right, pace):
    number = {FULL: 1.0, FEW: 4.0}.get(label)
    return SettingRow(
        label=label,
        tokens_per_step=number,
        threshold=0.5 if number is None else None,
        num_problems=len(right),
        right=pack_bits(right),
        tokens_per_forward=pace,
        mean_length=7.0,
    )


def row(
    name, seed, few, full=(1, 1, 1, 1), lr=1e-3, kind="method", validation=None, curve=(), seconds=2.0, dynamic=None
):
    """A tested cell of four problems: 1 token a step at a TPF of 1, 4 at 3."""
    settings = [setting(FULL, full, 1.0), setting(FEW, few, 3.0)]
    if dynamic is not None:
        settings.append(setting(DYNAMIC, *dynamic))
    training = Training(
        steps=10, seconds_per_step=seconds, rollout_seconds=5.0, wall_seconds=30.0, starts=1, device="cpu", curve=curve
    )
    is_teacher = kind == "teacher"
    return Row(
        name=name,
        variant=name.removesuffix(" (equal time)"),
        kind=kind,
        lr=None if is_teacher else lr,
        seed=seed,
        training=None if is_teacher else training,
        validation=validation or {},
        settings=settings,
    )


GOOD, BAD = {1: 1.0, 4: 0.5}, {1: 0.5, 4: 0.25}
ROWS = (
    row("teacher", None, (0, 0, 0, 1), kind="teacher", dynamic=((1, 0, 0, 0), 2.0)),
    row("plain", 0, (1, 0, 0, 1), validation=GOOD, dynamic=((1, 1, 1, 0), 2.5)),
    row("plain", 100, (0, 0, 1, 1), dynamic=((1, 1, 1, 1), 3.5)),
    row("plain", 0, (1, 1, 1, 1), lr=3e-3, validation=BAD),  # tested before another rate was chosen
    row("rounds", 0, (1, 1, 0, 1), validation=GOOD, seconds=4.0),
    row("rounds", 100, (1, 1, 1, 1), seconds=6.0),
    row("plain (equal time)", 0, (1, 1, 1, 0), kind="equal time"),
    row("no random tokens", 0, (1, 0, 0, 0), full=(1, 1, 1, 0), kind="ablation"),
    row("no random tokens", 100, (0, 0, 0, 0), kind="ablation"),
    Row(name=HOPELESS, variant=HOPELESS, kind="method", lr=1e-3, seed=0, error="it diverged"),
)


@pytest.fixture
def found(tmp_path):
    start = Start(time="2026-01-01", command="t3d study", jobs=2, devices=1, versions={"t3d": "0"})
    return StudyRows(study=study_of(study_fields("story-mini", tmp_path / "out")), starts=(start,), rows=ROWS)


@pytest.fixture
def entries(found):
    return entries_of(found)


def named(entries, name):
    return next(each for each in entries if each.name == name)


def texts(table):
    return [[cell.text for cell in line] for group in table.groups for line in group]


def bold(table):
    return [cell.text for group in table.groups for line in group for cell in line if cell.is_best]


def test_an_entry_has_all_seeds_of_the_chosen_rate(entries):
    assert [(each.name, [own.seed for own in each.rows], each.lr) for each in entries] == [
        ("teacher", [None], None),
        ("plain", [0, 100], 1e-3),
        ("rounds", [0, 100], 1e-3),
        ("plain (equal time)", [0], 1e-3),
        ("no random tokens", [0, 100], 1e-3),
    ]
    assert named(entries, "plain").accuracy[FEW].value == 100 * 4 / 8
    assert named(entries, "plain").tokens_per_forward(DYNAMIC) == 3.0
    assert named(entries, "rounds").right(FEW).tolist() == [[True, True, False, True], [True] * 4]


def test_differences_are_between_the_same_seeds(entries):
    plain, rounds, equal = (named(entries, name) for name in ("plain", "rounds", "plain (equal time)"))
    both = compare(rounds, plain, FEW)
    assert (both.points.value, both.num_seeds) == (100 * (7 - 4) / 8, 2)
    alone = compare(rounds, equal, FEW)  # seed 0 only: 1101 against 1110
    assert (alone.points.value, alone.num_seeds) == (0.0, 1)
    of_teacher = compare(rounds, named(entries, "teacher"), FEW)  # 1101 and 1111 against 0001 twice
    assert (of_teacher.points.value, of_teacher.num_seeds) == (100 * (2 + 3) / 8, 2)
    assert compare(rounds, rounds, FEW).points.value == 0.0


def test_seeds_that_nothing_shares_are_not_compared(entries):
    early, late = named(entries, "plain (equal time)"), named(entries, "rounds")
    object.__setattr__(late, "rows", late.rows[1:])
    assert compare(early, late, FEW) is None


@pytest.mark.parametrize(
    "low, high, by, verdict",
    [
        (0.1, 2.0, 0.0, "confirmed"),
        (0.0, 2.0, 0.0, "not confirmed"),
        (-1.0, 0.0, 0.0, "not confirmed"),
        (-2.0, -0.1, 0.0, "the other way round"),
        (-0.5, 0.5, -1.0, "confirmed"),  # lacks less than a point
        (-1.5, 0.5, -1.0, "not confirmed"),
        (-1.5, -0.5, -1.0, "not confirmed"),
        (-3.0, -1.5, -1.0, "the other way round"),
        (5.1, 8.0, 5.0, "confirmed"),
        (1.0, 4.0, 5.0, "not confirmed"),  # better, but by less than was said
        (-4.0, -1.0, 5.0, "the other way round"),
    ],
)
def test_verdicts(low, high, by, verdict):
    assert verdict_of(Figure((low + high) / 2, low, high), by) == verdict


def test_claims_say_what_was_compared(found, entries):
    (line,) = texts(claims_table(found, entries))
    assert line[:4] == ["Rounds are better", "rounds", "plain", "4"]
    assert line[4].startswith("+37.5 (")
    assert line[5:7] == ["> 0", "2"]
    unmeasured = [each for each in entries if each.name != "rounds"]
    assert texts(claims_table(found, unmeasured))[0][4:] == ["–", "> 0", "–", "not measured"]


def test_the_best_is_bold_and_said(entries):
    table = static_table(entries)
    assert [line[0] for line in texts(table)] == ["teacher", "plain", "rounds"]
    assert [text.split()[0] for text in bold(table)] == ["100.0", "100.0", "100.0", "87.5"]
    assert {line[-1] for line in texts(table)} == {"1.00 / 3.00"}
    sentence = next(note for note in table.notes if note.startswith("At 4 tokens per step"))
    assert "rounds is best with 87.5; 37.5 points above plain" in sentence


def test_the_dynamic_rule_shows_what_was_measured_with_it(entries):
    measured = [each for each in entries if each.name in ("teacher", "plain")]
    lines = texts(dynamic_table(measured))
    assert [[line[0], line[1], line[2].split()[0], *line[3:]] for line in lines] == [
        ["0.5", "teacher", "25.0", "2.00", "7"],
        ["0.5", "plain", "87.5", "3.00", "7"],
    ]


def test_costs_are_means_over_seeds(entries):
    lines = {line[0]: line for line in texts(cost_table([each for each in entries if each.kind == "method"]))}
    assert lines["rounds"][1:7] == ["0.001", "10", "5.000", "5.0", "50.0", "30.0"]
    # AUP: 4 tokens a step are more than 5 points below 1, so that only the first point counts: 1 * 100
    assert lines["rounds"][7] == "100.0"


def test_equal_time_stands_below_the_method_whose_time_it_is(found, entries):
    lines = texts(equal_time_table(found, entries))
    assert [[line[0], line[1], line[3].split()[0]] for line in lines] == [
        ["rounds", "10", "87.5"],
        ["plain (equal time)", "10", "75.0"],
    ]


def test_ablations_are_differences_to_their_method(found, entries):
    base, change = texts(ablation_table(found, entries))
    assert (base[0], change[1]) == ("plain", "no random tokens")
    assert [text.split()[0] for text in change[2:]] == ["-12.5", "-37.5"]  # 7 of 8 against 8; 1 against 4


def test_learning_rates_say_what_failed_and_was_chosen(found):
    table = rate_table(found)
    assert texts(table) == [
        ["plain", "75.0 (100.0 / 50.0)", "37.5 (50.0 / 25.0)"],
        ["rounds", "75.0 (100.0 / 50.0)", "–"],
        [HOPELESS, "failed", "–"],
    ]
    assert bold(table) == ["75.0 (100.0 / 50.0)"] * 2


def test_a_test_that_failed_does_not_hide_what_was_tried(found):
    failed = row("plain", 0, ()).model_copy(update={"settings": (), "training": None, "error": "it was killed"})
    table = rate_table(found.model_copy(update={"rows": (*ROWS, failed)}))
    assert texts(table)[0] == texts(rate_table(found))[0]


def test_the_first_seed_decides_the_learning_rate(found):
    """As when the study ran; seed 100 was the first one before another was put in front of it."""
    better = row("plain", 100, (1, 1, 1, 1), lr=3e-3, validation={1: 1.0, 4: 1.0})
    assert chosen_lr(found.model_copy(update={"rows": (*ROWS, better)}), "plain") == 1e-3


def test_what_is_missing_is_said(found):
    failed, missing = incomplete(found)
    assert failed == f"{HOPELESS}, learning rate 0.001, seed 0: it diverged"
    # Wanted: 3 methods at 2 rates; the teacher; 3 methods, 1 at equal time and 1 ablation with 2 seeds. There: plain at
    # both rates, the others at one; the teacher; plain, rounds and the ablation with 2 seeds, equal time with 1.
    assert missing == f"{(6 + 1 + 10) - (4 + 1 + 7)} of 17 cells were not done"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.08))
def test_names_are_spread(places, height):
    places = sorted(places)
    moved = spread(places, height)
    assert all(after - before > height - 1e-9 for before, after in pairwise(moved))
    assert max(moved) <= 1.0
    if all(after - before >= height for before, after in pairwise(places)):
        assert moved == pytest.approx(places)


def test_pictures_show_what_there_is(found, entries):
    assert {name: content[1:4] for name, content in pictures(entries).items()} == {"accuracy.png": b"PNG"}
    curve = [CurvePoint(step=step, seconds=2.0 * step, accuracy={4: 0.1 * step}) for step in (2, 4)]
    watched = found.model_copy(update={"rows": [row("plain", 0, (1, 0, 0, 1), validation=GOOD, curve=curve)]})
    assert pictures(entries_of(watched)).keys() == {"accuracy.png", "training.png"}


def test_rows_alone_make_the_report_elsewhere(found, tmp_path, capsys):
    file = tmp_path / "copied" / ROWS_FILE
    write_rows(found, file)
    assert read_rows(file) == found
    assert run(["study-report", str(file), "--out", str(tmp_path / "report")]) == 0
    told = capsys.readouterr().out
    assert "not confirmed" in told or "confirmed" in told
    text = (tmp_path / "report" / "report.md").read_text()
    for expected in ("it diverged", "one training", "## Claims", "accuracy.png", "37.5 points above plain"):
        assert expected in text
    with (tmp_path / "report" / "static.csv").open() as stream:
        lines = {(line["method"], line["setting"]): line for line in csv.DictReader(stream)}
    assert float(lines["rounds", FEW]["accuracy"]) == 87.5
    assert lines["rounds", FEW]["seeds"] == "2"


def test_other_claims_may_be_judged(found, tmp_path, capsys):
    write_rows(found, tmp_path / ROWS_FILE)
    fields = json.loads(found.study.model_dump_json())
    claim = {"text": "Few steps gain a lot", "better": "rounds", "than": "teacher", "at": [4], "by": 99}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**fields, "claims": [claim]}))
    arguments = ["study-report", str(tmp_path), "--claims", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "r")]
    assert run(arguments) == 0
    text = (tmp_path / "r" / "report.md").read_text()
    assert "Few steps gain a lot" in text
    assert "Rounds are better" not in text
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**fields, "methods": {"new": {}}, "claims": [{**claim, "than": "new"}]})
    )
    assert run(arguments) == 2


def test_nothing_tested_is_nothing_to_report(found, tmp_path):
    with pytest.raises(RequestError, match="nothing to report"):
        write_report(found.model_copy(update={"rows": ROWS[-1:]}), tmp_path)


def test_intervals_widen_with_seeds_that_disagree(found):
    """Pooling 2 x 4 answers would know nothing of seeds."""
    alike = [row("plain", seed, (1, 1, 0, 0), validation=GOOD) for seed in (0, 100)]
    apart = [row("plain", 0, (1, 1, 1, 1), validation=GOOD), row("plain", 100, (0, 0, 0, 0))]
    widths = []
    for rows in (alike, apart):
        (entry,) = entries_of(found.model_copy(update={"rows": rows}))
        figure = entry.accuracy[FEW]
        assert figure.value == 50.0
        widths.append(figure.high - figure.low)
    assert widths[1] == 100.0
    assert np.isfinite(widths[0])
    assert widths[0] <= widths[1]

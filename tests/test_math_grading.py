"""Grading mathematics: what counts as the answer, what it is compared by, and the processes that compare."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import CancelledError
from fractions import Fraction
from importlib.metadata import version

import math_pairs
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from t3d.errors import RequestError, WorkError
from t3d.tasks.base import GraderOptions
from t3d.tasks.gsm8k import GSM8KTask
from t3d.tasks.math500 import Math500Task
from t3d.tasks.mathematics import INSTRUCTION, MathGrader, comparer, extract_answer
from t3d.tasks.mathematics.compare import compare
from t3d.tasks.mathematics.grader import LONGEST_ANSWER
from t3d.tasks.mathematics.notation import normalize
from t3d.tasks.mathematics.protocol import Limits
from t3d.types import Problem, Verdict

OUTCOMES = {"right", "wrong", "no_answer", "unparsed", "timeout"}
EXPECTED = [
    *((*pair, outcome) for outcome, pairs in math_pairs.AGREED.items() for pair in pairs),
    *((*pair, "right") for pair in [*math_pairs.NOTATION, *math_pairs.TOO_LENIENT]),
    *((*pair, "unparsed") for pair in math_pairs.PROSE),
]
COMPARABLE = [each for each in EXPECTED if len(each[0]) <= LONGEST_ANSWER]


def boxed(answer):
    return rf"\boxed{{{answer}}}"


def problem(answer):
    return Problem("p", "How many?", answer=answer)


def workers():
    """The processes of this one that compare answers."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "t3d.tasks.mathematics.worker" in child.cmdline()]


@pytest.fixture(scope="module")
def grader():
    with MathGrader(GraderOptions(num_workers=2)) as grader:
        yield grader


# what a comparison finds


def test_the_tables_are_as_large_as_they_should_be():
    pairs = [*EXPECTED, *math_pairs.TOO_STRICT, *math_pairs.ENDLESS]
    assert len(set(pairs)) == len(pairs) >= 300
    assert len({response for response, *_ in math_pairs.RESPONSES}) >= 50


def test_comparing_agrees_with_the_judgement_by_hand():
    found = [(answer, reference, compare(answer, reference).outcome) for answer, reference, _ in COMPARABLE]
    assert found == COMPARABLE


def test_processes_find_what_comparing_here_finds(grader):
    pairs = [each for each in EXPECTED if extract_answer(boxed(each[0])) == each[0].strip()][::3]
    assert len(pairs) > 90
    verdicts = [grader.submit(boxed(answer), problem(reference)) for answer, reference, _ in pairs]
    assert [future.result().outcome for future in verdicts] == [outcome for *_, outcome in pairs]


def says_math_verify(answer, reference):
    """Asked directly, with its own settings."""
    return verify(parse(boxed(reference)), parse(boxed(answer)))


def test_math_verify_agrees_where_it_should():
    agreed = [
        (answer, reference, outcome == "right")
        for outcome, pairs in math_pairs.AGREED.items()
        for answer, reference in pairs
        if len(answer) <= LONGEST_ANSWER
    ]
    known = [
        *((*pair, False) for pair in [*math_pairs.NOTATION, *math_pairs.TOO_STRICT]),
        *((*pair, True) for pair in [*math_pairs.PROSE, *math_pairs.TOO_LENIENT]),
    ]
    for answer, reference, expected in [*agreed, *known]:
        assert says_math_verify(answer, reference) == expected, (answer, reference)


def test_known_strictness_is_still_there():
    assert [pair for pair in math_pairs.TOO_STRICT if compare(*pair).outcome == "right"] == []


def test_normalizing_twice_is_normalizing_once():
    answers = {text for answer, reference, _ in COMPARABLE for text in (answer, reference)}
    once = {answer: normalize(answer) for answer in answers}
    assert [(answer, text) for answer, text in once.items() if normalize(text) != text] == []


def test_what_math_verify_reads_well_is_left_alone():
    left = [answer for answer, _ in math_pairs.AGREED["right"] if normalize(answer) == answer.strip()]
    assert len(left) > 0.9 * len(math_pairs.AGREED["right"])


INTEGERS = st.integers(-(10**9), 10**9)


def writings(number):
    """Ways of writing a decimal fraction."""
    plain = f"{float(number):.3f}".rstrip("0").rstrip(".")
    sign, size = ("-" if number < 0 else ""), abs(number)
    whole, rest = divmod(size.numerator, size.denominator)
    return [
        plain,
        f"{plain}0" if "." in plain else f"{plain}.0",
        f"{float(number):,.3f}",
        rf"\${plain}",
        f"{plain} dollars",
        rf"{plain}\text{{ cm}}",
        f"x = {plain}",
        f"{plain}.",
        plain.replace("-", "\u2212"),
        rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}",
        f"{number.numerator}/{number.denominator}",
        rf"{sign}{whole} {rest}/{size.denominator}" if rest else f"{sign}{whole:,}",
    ]


@settings(max_examples=40, deadline=None)
@given(INTEGERS, st.sampled_from([1, 2, 4, 5, 8, 10, 25]), st.data())
def test_a_number_is_itself_in_every_writing(numerator, denominator, data):
    number = Fraction(numerator, denominator)
    answer, reference = data.draw(st.tuples(*[st.sampled_from(writings(number))] * 2))
    assert compare(answer, reference).outcome == "right"


@settings(max_examples=40, deadline=None)
@given(st.integers(-2000, 2000), st.integers(-2000, 2000), st.sampled_from([1, 2, 4, 5, 8, 10]), st.data())
def test_another_number_is_wrong_in_every_writing(one, other, denominator, data):
    assume(one != other)
    answer = data.draw(st.sampled_from(writings(Fraction(one, denominator))))
    reference = data.draw(st.sampled_from(writings(Fraction(other, denominator))))
    assert compare(answer, reference).outcome == "wrong"


# what counts as the answer


@pytest.mark.parametrize(
    "response, answer, reference, outcome", math_pairs.RESPONSES, ids=range(len(math_pairs.RESPONSES))
)
def test_responses(grader, response, answer, reference, outcome):
    verdict = grader.submit(response, problem(reference)).result()
    assert extract_answer(response) == answer
    assert (verdict.outcome, verdict.right, verdict.answer) == (outcome, outcome == "right", answer)


BALANCED = st.recursive(
    st.text(st.sampled_from(r"a1 +,$&\ ^_".replace("\\", "")), min_size=1, max_size=4),
    lambda inner: st.builds("{0}{{{1}}}".format, inner, inner) | st.builds(r"\{{{0}\left\}}".format, inner),
    max_leaves=6,
).filter(str.strip)


@given(BALANCED, st.text(st.sampled_from("ab {}\\#\n"), max_size=20))
def test_the_last_box_gives_its_content_whatever_went_before(content, before):
    assume(not before.endswith("\\"))
    assert extract_answer(f"{before} {boxed(content)}.\nDone.") == content.strip()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30) | st.text(st.sampled_from(r"\boxed{}$#4 fracx^(,)" + "\x00\u00bd"), max_size=40))
def test_no_text_makes_grading_raise(grader, text):
    for response in (text, boxed(text), f"#### {text}"):
        verdict = grader.submit(response, problem("4")).result()
        assert verdict.outcome in OUTCOMES
        assert verdict.right == (verdict.outcome == "right")


def test_a_few_step_answer_is_graded_by_the_full_step_one(grader):
    full, few = r"\dots so \boxed{\dfrac{3}{4}}", r"It is \boxed{0.75}."
    reference = grader.extract_answer(full)
    assert grader.submit(few, problem(reference)).result() == Verdict(True, "right", "0.75")
    assert not grader.submit(r"\boxed{0.7}", problem(reference)).result().right


def test_a_problem_without_an_answer_is_refused(grader):
    with pytest.raises(RequestError, match="problem p: no answer"):
        grader.submit(boxed(5), problem(None))


def test_version_names_math_verify(grader):
    assert grader.version == f"math-verify {version('math-verify')}, answers 1"


# the processes


def test_what_never_ends_is_a_timeout_and_the_next_answer_is_graded():
    with MathGrader(GraderOptions(num_workers=2), Limits(cpu_seconds=0.3)) as grader:
        endless = [grader.submit(boxed(answer), problem(reference)) for answer, reference in math_pairs.ENDLESS]
        after = grader.submit(boxed("5.0"), problem("5"))
        assert [future.result().outcome for future in endless] == ["timeout"] * len(endless)
        assert after.result().right


def test_a_process_that_hardly_runs_is_a_timeout():
    answer, reference = math_pairs.ENDLESS[0]
    with MathGrader(GraderOptions(num_workers=1), Limits(cpu_seconds=100, wall_seconds=0.2)) as grader:
        assert grader.submit(boxed(answer), problem(reference)).result() == Verdict(False, "timeout", answer)


def test_a_process_that_was_killed_has_a_successor():
    before = set(workers())
    with MathGrader(GraderOptions(num_workers=1)) as grader:
        assert grader.submit(boxed("5.0"), problem("5")).result().right
        [worker] = set(workers()) - before
        worker.kill()
        worker.wait()
        assert grader.submit(boxed("6.0"), problem("6")).result().right


DIES = "os.kill(os.getpid(), 9)"
ALLOCATES = "bytearray(2**32)"


@pytest.mark.parametrize("deed", [DIES, ALLOCATES])
def test_a_comparison_that_ends_its_process_is_a_verdict(deed, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\nfrom t3d.tasks.mathematics import worker\n"
        f"worker.compare = lambda **_: {deed}\nworker.serve(float(sys.argv[-2]), int(sys.argv[-1]))\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(comparer.sys, "executable", str(stand_in))
    with MathGrader(GraderOptions(num_workers=1)) as grader:
        verdict = grader.submit(boxed("5.0"), problem("5")).result()
    assert verdict == Verdict(False, "unparsed", "5.0", "comparing ended the process")


def test_processes_that_do_not_start_are_an_error_and_no_verdict(tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nexit 3\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(comparer.sys, "executable", str(stand_in))
    with MathGrader() as grader, pytest.raises(WorkError, match=r"cannot grade mathematics: .* exit code 3"):
        grader.submit(boxed("5.0"), problem("5")).result()


def test_nothing_starts_before_it_is_needed():
    before = set(workers())
    with MathGrader(GraderOptions(num_workers=3)) as grader:
        assert grader.submit(boxed("9^{9^9}"), problem("9^{9^9}")).result().right  # the same text needs no comparison
        assert grader.submit("5", problem("5")).result().outcome == "no_answer"
        assert set(workers()) == before
        for _ in range(3):
            assert grader.submit(boxed("5.0"), problem("5")).result().right
        assert len(set(workers()) - before) == 1
    assert set(workers()) == before


def test_closing_cancels_and_leaves_no_process():
    before = set(workers())
    grader = MathGrader(GraderOptions(num_workers=1))
    futures = [grader.submit(boxed(answer), problem(reference)) for answer, reference in math_pairs.ENDLESS]
    grader.close()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=10)
    assert set(workers()) == before
    grader.close()


def test_an_interrupt_from_the_keyboard_does_not_reach_the_workers(grader):
    grader.submit(boxed("5.0"), problem("5")).result()
    assert workers()
    assert os.getpgrp() not in {os.getpgid(worker.pid) for worker in workers()}


def test_workers_end_with_a_caller_that_was_killed():
    script = (
        "import psutil, time\nfrom t3d.tasks.mathematics import MathGrader\nfrom t3d.types import Problem\n"
        f"MathGrader().submit({boxed('5.0')!r}, Problem('p', '?', answer='5')).result()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        worker = psutil.Process(int(caller.stdout.readline()))
        caller.send_signal(signal.SIGKILL)
    worker.wait(timeout=20)


def test_a_script_without_a_main_guard_can_grade(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nsys.modules['torch'] = sys  # as if a slow import stood here\nprint('once')\n"
        "from t3d.tasks.mathematics import MathGrader\nfrom t3d.types import Problem\n"
        f"future = MathGrader().submit({boxed('5.0')!r}, Problem('p', '?', answer='5'))\n"
        "print(future.result().outcome)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["once", "right"]


@pytest.mark.parametrize(
    "module, absent",
    [
        ("t3d.tasks.mathematics.worker", {"torch", "transformers", "datasets"}),
        ("t3d.tasks.gsm8k, t3d.tasks.math500", {"torch", "transformers", "datasets", "sympy", "math_verify"}),
    ],
)
def test_imports_stay_light(module, absent):
    check = f"import {module}, sys; sys.exit(', '.join({absent} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stderr.strip() == ""


# the tasks

WORKED = "Ann has 3+4 = <<3+4=7>>7 pens.\nThat is 7*$150 = $<<7*150=1050>>1,050."
LOCAL = {
    "id": "gsm8k/test/0",
    "question": "What do they cost?",
    "answer": "1050",
    "solution_raw": f"{WORKED}\n#### 1,050",
}
HUB = {"question": "What do they cost?", "answer": f"{WORKED}\n#### 1,050"}
SOLUTION = "Ann has 3+4 = 7 pens.\nThat is 7*$150 = $1,050.\nThe answer is \\boxed{1050}."
MATH = {
    "problem": "What is half of one half?",
    "solution": r"It is $\frac12\cdot\frac12 = \boxed{\frac{1}{4}}.$",
    "answer": r"\frac{1}{4}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}


def write_rows(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    "row, expected_id", [(LOCAL, "gsm8k/test/0"), (HUB, "rows/1"), ({**LOCAL, "answer": 1050}, "gsm8k/test/0")]
)
def test_gsm8k_reads_the_hub_s_rows_and_prepared_ones(tmp_path, row, expected_id):
    assert GSM8KTask(write_rows(tmp_path, row)).problems("test") == [
        Problem(expected_id, "What do they cost?", answer="1050", solution=SOLUTION)
    ]


def test_gsm8k_without_worked_solutions_has_none(tmp_path):
    [found] = GSM8KTask(write_rows(tmp_path, {"question": "How many?", "answer": "-7"})).problems("test")
    assert (found.answer, found.solution) == ("-7", None)


def test_math500_reads_the_hub_s_rows(tmp_path):
    expected = Problem("test/prealgebra/1.json", MATH["problem"], answer=r"\frac{1}{4}", solution=MATH["solution"])
    boxes_it = {name: value for name, value in MATH.items() if name != "answer"}
    assert Math500Task(write_rows(tmp_path, MATH)).problems("test") == [expected]
    assert Math500Task(write_rows(tmp_path, boxes_it)).problems("train") == [expected]


@pytest.mark.parametrize("task, row", [(GSM8KTask, HUB), (Math500Task, {**MATH, "unique_id": None})])
def test_solutions_are_right_and_count_takes_the_first(task, row, tmp_path, grader):
    task = task(write_rows(tmp_path, *[row] * 5))
    problems = task.problems("test")
    assert [each.problem_id for each in problems] == [f"rows/{number}" for number in range(1, 6)]
    assert task.problems("test", 2) == problems[:2]
    assert all(grader.submit(each.solution, each).result().right for each in problems)
    assert (
        task.form.instruction
        == INSTRUCTION
        == r"Please reason step by step, and put your final answer within \boxed{}."
    )
    with task.grader() as own:
        assert own.version == grader.version


@pytest.mark.parametrize(
    "task, row, message",
    [
        (GSM8KTask, {"answer": "5"}, "no field `question`"),
        (GSM8KTask, {"question": " ", "answer": "5"}, "`question` must be"),
        (GSM8KTask, {"question": "How many?"}, "no field `answer`"),
        (GSM8KTask, {"question": "How many?", "answer": True}, "`answer` must be"),
        (GSM8KTask, {"question": "How many?", "answer": "2+3\n#### "}, "no answer after ####"),
        (GSM8KTask, LOCAL, "id 'gsm8k/test/0' is already used in line 1"),
        (Math500Task, {"solution": r"\boxed{5}"}, "no field `problem`"),
        (Math500Task, {"problem": "How many?", "solution": "five"}, "neither `answer` nor"),
        (Math500Task, {"problem": "How many?"}, "neither `answer` nor"),
        (Math500Task, {"problem": "How many?", "answer": ["5"]}, "`answer` must be"),
    ],
)
def test_rows_that_are_no_problems_are_refused_by_line(task, row, message, tmp_path):
    file = write_rows(tmp_path, LOCAL if task is GSM8KTask else MATH, row)
    with pytest.raises(RequestError, match=f"rows.jsonl, line 2: .*{message}"):
        task(file).problems("test")

"""Every registered task, by one contract; and the task that is made of a file."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks import TASKS, choose, get_task, take_problems
from t3d.tasks.jsonl import JsonlTask
from t3d.tasks.mathematics import INSTRUCTION as MATHEMATICS
from t3d.tasks.programs import INSTRUCTION as PROGRAM
from t3d.tasks.prompts import put_questions, render_solution
from t3d.types import Problem, ProgramTests

NUMBERS = (7, 8, 9)
ROWS = {
    "gsm8k": [
        {
            "id": f"g{n}",
            "question": f"{n} and 1?",
            "answer": f"{n + 1}",
            "solution": f"{n} + 1 = {n + 1}",
            "solution_raw": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}",
        }
        for n in NUMBERS
    ],
    "math500": [
        {
            "problem": f"Find $x$ with $x = {n} + 1$.",
            "solution": f"It is $\\boxed{{{n + 1}}}$.",
            "answer": f"{n + 1}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/algebra/{n}.json",
        }
        for n in NUMBERS
    ],
    "humaneval": [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'from typing import List\n\n\ndef add(values: List[int]) -> int:\n    """Sum, and {n}."""\n',
            "entry_point": "add",
            "test": f"def check(candidate):\n    assert candidate([1, 2]) == {n + 3}\n",
            "canonical_solution": f"    return sum(values) + {n}\n",
        }
        for n in NUMBERS
    ],
    "mbpp": [
        {
            "task_id": n,
            "split": "test",
            "text": f"Write a function to add {n}.",
            "code": f"def add(x):\n    return x + {n}",
            "test_list": [f"assert add(1) == {n + 1}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for n in NUMBERS
    ],
    "math-train": [
        {
            "question": f"Find $x$ with $x = {n} + 1$.",
            "ground_truth_answer": f"{n + 1}",
            "solution": f"It is {n + 1}.",
        }
        for n in NUMBERS
    ],
    "primeintellect": [
        {
            "question": f"Read a number and print it plus {n}.",
            "test_method": "stdio",
            "test_input": ["1\n", "2\n"],
            "test_output": [f"{n + 1}\n", f"{n + 2}"],
            "test_time_limit": 1,
            "solution": f"```python\nprint(int(input()) + {n})\n```",
        }
        for n in NUMBERS
    ],
    "jsonl": [
        {"question": f"{n} and 1?", "answer": n + 1, "solution": f"That is \\boxed{{{n + 1}}}."} for n in NUMBERS
    ],
}
"""Three small problems of each task that reads data, in the order of the numbers."""


def write(folder, rows, name="mine.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def grade(task, pairs):
    """The verdicts of (response, problem) pairs."""
    with task.grader() as grader:
        return [future.result() for future in [grader.submit(*pair) for pair in pairs]]


@pytest.mark.parametrize("name", TASKS)
def test_task_contract(name, tmp_path):
    task = get_task(name, write(tmp_path, ROWS[name]) if name in ROWS else None)
    assert task.name == name
    problems = task.problems(task.test_split, 3)
    assert len({each.problem_id for each in problems}) == 3
    assert task.problems(task.test_split, 2) == problems[:2]
    assert problems == task.problems(task.test_split, 3)  # the same ones again
    put = put_questions(task, problems, PromptConfig(), None)
    assert [prompt.prompt_id for prompt in put.prompts] == [each.problem_id for each in problems]
    for problem, prompt in zip(problems, put.prompts, strict=True):
        assert problem.question in prompt.text
    right = [render_solution(each, put.form) for each in put.problems]
    verdicts = grade(task, zip(right, put.problems, strict=True))
    assert [(each.right, each.outcome) for each in verdicts] == [(True, "right")] * 3
    wrong = [right[1], right[2], right[0]]  # each answers another problem
    assert [each.right for each in grade(task, zip(wrong, put.problems, strict=True))] == [False] * 3
    (nothing,) = grade(task, [("", put.problems[0])])
    assert not nothing.right


@pytest.mark.parametrize("name", sorted(ROWS))
def test_tasks_that_read_data_say_where_they_cannot(name, tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(ROWS[name][0]) + "\n" + json.dumps({"other": 1}) + "\n")
    bad = str(tmp_path / "bad.jsonl")
    with pytest.raises(RequestError, match=rf"{bad}, line 2: "):
        get_task(name, bad).problems("all")
    with pytest.raises(RequestError, match=r"cannot read .*none\.jsonl"):
        get_task(name, str(tmp_path / "none.jsonl")).problems("all")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_tasks_that_read_data_read_them_once(name, tmp_path):
    task = get_task(name, write(tmp_path, ROWS[name]))
    problems = task.problems("test")
    (tmp_path / "mine.jsonl").unlink()
    assert task.problems("test", 2) == problems[:2]
    assert task.problems("test") == problems


def test_the_story_task_draws_its_own():
    story = get_task("story")
    assert [each.problem_id for each in story.problems("test", 2, 17)] == ["story/test/17/0", "story/test/17/1"]
    with pytest.raises(RequestError, match=r"unknown split 'dev'.*train, validation, test"):
        story.problems("dev", 1)
    with pytest.raises(RequestError, match="count must be 0 or more, not -1"):
        story.problems("test", -1)
    with pytest.raises(RequestError, match="task story draws its own problems: leave data out"):
        get_task("story", "x")
    for arguments in ((None, None), (5, 1)):  # endless: nothing to take all of, or to shuffle
        with pytest.raises(RequestError, match="task story is endless: say how many problems"):
            take_problems(story, "test", *arguments)
    assert take_problems(story, "test", 5, None, 3) == story.problems("test", 5, 3)


def test_unknown_task_lists_the_known():
    with pytest.raises(RequestError, match="unknown task 'gsm9k': choose one of gsm8k, humaneval, jsonl, "):
        get_task("gsm9k")


def test_graders_libraries_are_not_imported_before_a_response_needs_them():
    heavy = ("torch", "transformers", "sympy", "math_verify", "datasets", "pyarrow")
    script = (
        "import sys, t3d.tasks\n"
        "for name in t3d.tasks.TASKS: t3d.tasks.get_task(name, None if name == 'story' else 'x.jsonl')\n"
        f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# What the paper rolls out


def test_training_problems_are_those_of_their_hub_splits():
    """They have no test split: `t3d rollout --task` needs no `--split`, and takes no other."""
    for name in ("math-train", "primeintellect"):
        task = get_task(name)
        assert task.hub.splits == (task.test_split,) == ("train",)
        with pytest.raises(RequestError, match=r"Gen-Verse/\w+ has no split 'test': choose one of train"):
            task.problems("test")


def test_a_program_is_asked_for_as_its_row_is_graded(tmp_path):
    by_tests = {"question": "Add one.", "prefix": "def add(x):\n", "test_list": ["assert add(1) == 2"]}
    task = get_task("primeintellect", write(tmp_path, [ROWS["primeintellect"][0], by_tests]))
    reads, function = task.problems("train")
    assert reads.question == (
        "This is the problem:\nRead a number and print it plus 7.\nYou should put your code in ```python ```. "
        "Use input() to read input and print() to produce output in your script."
    )
    assert function.question == f"This is the problem:\nAdd one.\n{PROGRAM}"
    assert (reads.tests, reads.prefix) == (ProgramTests(cases=(("1\n", "8\n"), ("2\n", "9"))), "")
    assert (function.tests, function.prefix) == (ProgramTests("assert add(1) == 2"), "def add(x):\n")
    assert [each.right for each in grade(task, [("    return x + 1", function), ("    return x", function)])] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"test_method": "telepathy"}, '`test_method` must be stdio or function, not "telepathy"'),
        ({"test_output": ["1"]}, "`test_input` and `test_output` must be of one length, not 2 and 1"),
        ({"test_input": "1"}, '`test_input` must be a list of texts, not "1"'),
        ({"test_method": None}, "no field `test_list`"),
    ],
)
def test_problems_of_programs_that_cannot_be_graded_say_why(changes, said, tmp_path):
    task = get_task("primeintellect", write(tmp_path, [{**ROWS["primeintellect"][0], **changes}]))
    with pytest.raises(RequestError) as caught:
        task.problems("train")
    assert str(caught.value).startswith(f"{tmp_path}/mine.jsonl, line 1: {said}")


# Which problems


PROBLEMS = st.lists(st.text(max_size=3), unique=True, max_size=20).map(
    lambda ids: [Problem(each, f"{each}?") for each in ids]
)


@given(problems=PROBLEMS, seed=st.integers(0, 5), data=st.data())
def test_chosen_problems_are_a_prefix_of_one_order(problems, seed, data):
    limit = data.draw(st.integers(1, 20))
    shuffled = choose(problems, None, seed)
    assert sorted(shuffled, key=problems.index) == problems
    assert choose(problems, limit, seed) == shuffled[:limit]
    assert choose(problems, limit, None) == problems[:limit]
    left_out = data.draw(st.integers(0, 20))
    others = [each for place, each in enumerate(problems) if place != left_out]
    assert choose(others, None, seed) == [each for each in shuffled if each in others]


def test_seeds_order_problems_differently():
    problems = [Problem(f"p{number}", "") for number in range(50)]
    orders = [[each.problem_id for each in choose(problems, None, seed)] for seed in (None, 0, 1)]
    assert len(set(map(tuple, orders))) == 3


def test_the_order_of_a_seed_stays_what_it_is():
    """A result names its problems by it."""
    problems = [Problem(f"p{number}", "") for number in range(6)]
    assert [each.problem_id for each in choose(problems, None, 0)] == ["p0", "p3", "p2", "p5", "p1", "p4"]


# The task of a file


def test_every_accepted_row(tmp_path):
    rows = [
        {"id": "a", "prompt": "As it is", "answer": "4"},
        {"task_id": "b", "question": "How many?", "answer": 42, "solution": "It is 42."},
        {"id": 7, "question": "And now?", "other": [1]},
        {"id": None, "prompt": None, "question": "No id", "answer": None},
    ]
    assert JsonlTask(write(tmp_path, rows)).problems("train") == [
        Problem("a", "As it is", "4", rendered=True),
        Problem("b", "How many?", "42", solution="It is 42."),
        Problem("7", "And now?"),
        Problem("mine/4", "No id"),
    ]


def test_tests_and_cases_in_every_form(tmp_path):
    rows = [
        {"question": "q", "tests": "assert f(1) == 2"},
        {"question": "q", "tests": ["x = 1", "assert f(x) == 2"]},
        {"question": "q", "tests": "check(f)", "cases": [["1\n", "2\n"]]},
        {"question": "q", "cases": [{"input": "", "output": "a"}, {"input": "b", "output": ""}]},
    ]
    assert [each.tests for each in JsonlTask(write(tmp_path, rows)).problems("all")] == [
        ProgramTests("assert f(1) == 2"),
        ProgramTests("x = 1\nassert f(x) == 2"),
        ProgramTests("check(f)", (("1\n", "2\n"),)),
        ProgramTests(cases=(("", "a"), ("b", ""))),
    ]


def test_programs_of_a_file_are_run(tmp_path):
    rows = [
        {"question": "Add one.", "tests": ["assert add(1) == 2"]},
        {"question": "Echo.", "cases": [["a\n", "a\n"], ["b", "b"]]},
    ]
    task = JsonlTask(write(tmp_path, rows))
    add, echo = task.problems("test")
    assert task.form == PromptConfig(instruction=PROGRAM)
    pairs = [
        ("```python\ndef add(x):\n    return x + 1\n```", add),
        ("```python\ndef add(x):\n    return x\n```", add),
        ("```python\nprint(input())\n```", echo),
        ("```python\nprint('a')\n```", echo),
    ]
    assert [each.right for each in grade(task, pairs)] == [True, False, True, False]


def test_the_instruction_goes_with_what_the_rows_are_graded_by(tmp_path):
    assert JsonlTask(write(tmp_path, ROWS["jsonl"])).form == PromptConfig(instruction=MATHEMATICS)
    assert JsonlTask(write(tmp_path, [{"question": "q"}])).form == PromptConfig()
    rows = [{"question": "q", "split": "train"}, {"question": "r", "answer": 1, "split": "test"}]
    task = JsonlTask(write(tmp_path, rows))
    assert task.form == PromptConfig(instruction=MATHEMATICS)  # one form for all splits of a file
    assert [each.question for each in task.problems("train")] == ["q"]


GOOD = {"id": "a", "question": "x"}
WRONG_ROWS = {
    "no prompt": ([GOOD, {"id": "b"}], "line 2: give either `prompt` or `question`, not neither"),
    "two prompts": ([{"prompt": "x", "question": "y"}], "line 1: give either `prompt` or `question`, not both"),
    "a prompt that is a number": ([{"prompt": 3}], "line 1: `prompt` must be text"),
    "a blank question": ([{"question": "  "}], "line 1: `question` must be text that is not blank"),
    "an id again": ([GOOD, {"id": "b", "question": "y"}, GOOD], "line 3: id 'a' is already used in line 1"),
    "an id by another name": (
        [{"id": 1, "question": "x"}, {"task_id": "1", "question": "y"}],
        "line 2: id '1' is already used in line 1",
    ),
    "a list for an id": ([{"id": ["a"], "question": "x"}], "line 1: `id` must be text or a number"),
    "an empty id": ([{"id": "", "question": "x"}], "line 1: `id` must be text or a number"),
    "an answer of no kind": ([{**GOOD, "answer": True}], "line 1: `answer` must be text or a number, not true"),
    "a solution of no kind": ([{**GOOD, "solution": ["a"]}], "line 1: `solution` must be text"),
    "answer and tests": ([{**GOOD, "answer": 1, "tests": "f()"}], "line 1: give either `answer`, or `tests`"),
    "answers and tests": (
        [{**GOOD, "answer": 1}, {"id": "b", "question": "y", "tests": "assert f()"}],
        "line 2: has tests, a row before it an answer; make two files",
    ),
    "tests that are no code": ([{**GOOD, "tests": "assert ("}], "line 1: `tests` is not Python"),
    "tests of no kind": ([{**GOOD, "tests": {"a": 1}}], "line 1: `tests` must be Python code or a list of statements"),
    "no tests": ([{**GOOD, "tests": []}], "line 1: `tests` must be Python code or a list of statements"),
    "tests that always hold": (
        [{**GOOD, "tests": '["assert f(1) == 2"]'}],  # a list that was made text: Python, but nothing is asserted
        "line 1: `tests` has nothing that can fail; write assert statements",
    ),
    "cases of no kind": ([{**GOOD, "cases": [["1", 2]]}], "line 1: `cases` must be a list of"),
    "a case of three": ([{**GOOD, "cases": [["1", "2", "3"]]}], "line 1: `cases` must be a list of"),
    "a case by other names": ([{**GOOD, "cases": [{"in": "1", "out": "2"}]}], "line 1: `cases` must be a list of"),
    "no cases": ([{**GOOD, "cases": []}], "line 1: `cases` must be a list of"),
}


@pytest.mark.parametrize("rows, said", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_rows_say_where_and_what_to_do(rows, said, tmp_path):
    task = JsonlTask(write(tmp_path, rows))
    with pytest.raises(RequestError) as caught:
        put_questions(task, task.problems("all"), PromptConfig(), None)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/mine.jsonl, line ")
    assert "\n" not in str(caught.value)


def test_what_has_nothing_to_grade_by_is_not_graded(tmp_path):
    for rows, line in (([GOOD], 1), ([{**GOOD, "answer": 1}, {"question": "y"}], 2)):
        task = JsonlTask(write(tmp_path, rows))
        assert len(task.problems("all")) == len(rows)
        with pytest.raises(RequestError, match=rf"mine\.jsonl, line {line}: nothing to grade by; give it `answer`"):
            task.grader()
    with pytest.raises(RequestError, match="task jsonl is the problems of a file: name it"):
        get_task("jsonl")

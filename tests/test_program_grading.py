"""Programs in responses, their grader, HumanEval and MBPP."""

import json
import sys
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.errors import RequestError
from t3d.tasks.base import GraderOptions
from t3d.tasks.humaneval import HumanEvalTask
from t3d.tasks.mbpp import MBPPTask
from t3d.tasks.programs import ProgramGrader, extract_program
from t3d.types import Problem, ProgramTests

HEAD = 'from typing import List\n\n\ndef add(values: List[int]) -> int:\n    """Sum."""\n'
BODY = "    return sum(values)\n"
BARE = GraderOptions(num_workers=2, sandbox="limits")

EXTRACTED = [
    # response, prefix -> program
    ("Sure:\n```python\nx = 1\n```\nDone.", "", "x = 1"),
    ("```py\nx = 1\n```\nor rather\n```\nx = 2\n```", "", "x = 2"),
    ("```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```", "", "x = 1"),
    ("```python\nx = 1\ny = 2", "", "x = 1\ny = 2"),  # cut off
    ("```python\nx = 1```", "", "x = 1"),
    ("```Python\r\nx = 1\r\n```", "", "x = 1\r"),
    ("1. This:\n   ```python\n   if x:\n       y = 1\n   ```", "", "if x:\n    y = 1"),
    ("```python\nx = 1\n```python\nx = 2\n```", "", "x = 2"),  # never closed, begun again
    ("x = 1\nprint(x)\n", "", "x = 1\nprint(x)"),
    ("The answer is 3.", "", None),
    ("", "", None),
    ("\n \n", "", None),
    ("```python\n```", "", None),
    ("```python\ndef f(x) return\n```", "", "def f(x) return"),  # a program, if a bad one
    # a prefix that opened the block
    (f"{BODY}```\nSo add([1]) is 1:\n```python\nprint(add([1]))\n```", f"```python\n{HEAD}", HEAD + BODY),
    (f"{BODY}", f"```python\n{HEAD}", HEAD + BODY),
    (f"```\nLike this:\n```python\n{HEAD + BODY}```", f"```python\n{HEAD}", HEAD + BODY),
    (f"```python\n{HEAD + BODY}```", f"```python\n{HEAD}", HEAD + BODY),
    ("x = 1\n```\n", "```python\n", "x = 1"),
    ("x = 1\n```\nThat is it.", "```python\n", "x = 1"),
    ("", f"```python\n{HEAD}", HEAD),
    (BODY, HEAD, (HEAD + BODY)),
]


@pytest.mark.parametrize("response, prefix, program", EXTRACTED)
def test_extraction(response, prefix, program):
    found = extract_program(response, prefix)
    assert (found and found.rstrip("\n")) == (program and program.rstrip("\n"))


lines = st.text(st.characters(exclude_characters="`\n\r", exclude_categories=("Cs",)), max_size=30)
programs = st.lists(lines, min_size=1, max_size=6).map("\n".join).filter(str.strip)


@given(programs, programs, st.sampled_from(["```", "```python", "```py", "```python3"]))
def test_the_last_block_is_the_program(first, last, fence):
    text = f"See:\n```python\n{first}\n```\nbetter\n{fence}\n{last}\n```"
    assert extract_program(f"{text}\nThat is all.") == last
    assert extract_program(text.removesuffix("\n```")) == last


@given(st.text(st.sampled_from("`\n pyx=1:"), max_size=60), st.text(st.sampled_from("`\n pyx=1:"), max_size=20))
@settings(max_examples=300)
def test_extraction_takes_any_text(response, prefix):
    found = extract_program(response, prefix)
    assert found is None or found.strip()


def verdict(response, problem, options=BARE):
    with ProgramGrader(options) as grader:
        return grader.submit(response, problem).result()


def test_verdicts():
    problem = Problem("p", "?", tests=ProgramTests("assert f(1) == 2"))
    right = verdict("```python\ndef f(x): return x + 1\n```", problem)
    assert (right.right, right.outcome, right.answer, right.detail) == (True, "right", "def f(x): return x + 1", "")
    wrong = verdict("```python\ndef f(x): return x\n```", problem)
    assert (wrong.right, wrong.outcome, wrong.detail) == (False, "failed", "AssertionError: assert f(1) == 2")
    missing = verdict("```python\ndef g(x): return x\n```", problem)
    assert (missing.outcome, missing.detail) == ("error", "NameError: name 'f' is not defined")
    assert verdict("I do not know.", problem).outcome == "no_answer"
    assert verdict("```python\nraise SystemExit\n```", problem).outcome == "exit"


def test_programs_without_tests_are_compared():
    response = "Sure:\n```python\nx = 1\n```"
    with ProgramGrader(BARE) as grader:
        answer = grader.extract_answer(response)
        assert answer == "x = 1"
        problem = Problem("p", "?", answer=answer)
        outcomes = [grader.submit(text, problem).result().outcome for text in (response, "```\nx = 2\n```", "Hm?")]
        assert outcomes == ["right", "wrong", "no_answer"]
        goes_on = [f"{BODY}```\nThis sums.", f"{BODY}```", BODY]
        assert {grader.extract_answer(text) for text in goes_on} == {BODY.rstrip()}
        with pytest.raises(RequestError, match="problem q: no tests to grade by"):
            grader.submit(response, Problem("q", "?"))


def test_grader_says_what_verdicts_depend_on():
    with ProgramGrader(BARE) as grader:
        assert grader.version == f"programs 1 (Python {sys.version_info[0]}.{sys.version_info[1]})"
        assert grader.isolation == "limits only, no isolation"
    with pytest.raises(RequestError, match="unknown sandbox 'none'"):
        ProgramGrader(GraderOptions(sandbox="none"))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=3, deadline=None)
def test_responses_are_graded_in_any_number_at_once(are_right):
    def response(number, right):
        return f"```python\ndef f(): return {number if right else -1}\n```"

    with ProgramGrader(GraderOptions(num_workers=6, sandbox="limits")) as grader:
        futures = [
            grader.submit(
                response(number, right), Problem(str(number), "?", tests=ProgramTests(f"assert f() == {number}"))
            )
            for number, right in enumerate(are_right)
        ]
        assert [future.result().right for future in futures] == are_right


def write(folder, rows):
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef twice(x):\n    return x * 2\n\n\n" + HEAD.partition("\n\n\n")[2],
    "entry_point": "add",
    "test": "\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert twice(2) == 4\n",
    "canonical_solution": BODY,
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double. ",
    "code": "class Node:\r\n  pass\r\ndef double(x):\r\n  return x * 2\r\n",
    "test_list": ["assert double(2) == 4", "assert double(root.x) == 6"],
    "test_setup_code": "root = Node()\r\nroot.x = 3",
    "challenge_test_list": ["assert double(0) == 1"],
}


def test_humaneval(tmp_path):
    task = HumanEvalTask(write(tmp_path, [HUMANEVAL, {**HUMANEVAL, "task_id": "HumanEval/1"}]))
    (problem,) = task.problems("test", 1)
    assert problem.problem_id == "HumanEval/0"
    assert problem.question.endswith('    """Sum."""')
    assert problem.prefix == "```python\n" + HUMANEVAL["prompt"]
    assert problem.solution == "    return sum(values)\n```"
    with task.grader(BARE) as grader:

        def outcome(response):
            return grader.submit(response, problem).result().outcome

        assert outcome(problem.solution) == "right"
        assert outcome("    return 3") == "right"
        assert outcome("    return 4") == "failed"
        assert outcome("") == "failed"  # the head alone
        fresh = dedent(
            """
            ```
            Here it is:
            ```python
            def add(values: List[int]) -> int:
                return sum(values)
            ```
            """
        )
        assert outcome(fresh) == "right"  # what the prompt imports and defines is there
        assert outcome(fresh.replace("def add", "def plus")) == "failed"


def test_mbpp(tmp_path):
    task = MBPPTask(write(tmp_path, [{**MBPP, "split": "test"}, {**MBPP, "task_id": 601, "split": "train"}]))
    assert [each.problem_id for each in task.problems("all")] == ["MBPP/11", "MBPP/601"]
    (problem,) = task.problems(task.test_split)
    assert problem.question == (
        "You are an expert Python programmer, and here is your task: Write a function to double. "
        "Your code should pass these tests:\n\nassert double(2) == 4\nassert double(root.x) == 6\n"
    )
    assert problem.solution == "class Node:\n  pass\ndef double(x):\n  return x * 2\n```"
    with task.grader(BARE) as grader:
        responses = [
            problem.solution,
            "def double(x):\n  return x * 2\n```",
            "class Node: pass\ndef double(x): return 4",
        ]
        outcomes = [grader.submit(response, problem).result().outcome for response in responses]
    assert outcomes == ["right", "error", "failed"]  # without Node; with a constant


@pytest.mark.parametrize("task, row, field, message", [
    (HumanEvalTask, HUMANEVAL, {"test": None}, "no field `test`"),
    (HumanEvalTask, HUMANEVAL, {"prompt": 3}, "`prompt` must be text that is not blank, not 3"),
    (MBPPTask, MBPP, {"test_list": []}, "`test_list` must be a list of texts"),
    (MBPPTask, MBPP, {"test_list": "assert f() == 1"}, "`test_list` must be a list of texts"),
    (MBPPTask, MBPP, {"code": None}, "no field `code`"),
])  # fmt: skip
def test_wrong_rows_are_named(task, row, field, message, tmp_path):
    file = write(tmp_path, [row, {**row, **field}])
    with pytest.raises(RequestError, match=f"mine.jsonl, line 2: {message}"):
        task(file).problems("all")

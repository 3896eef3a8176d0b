"""The task of a file: whatever questions it holds, graded by their answers or by their tests."""

from __future__ import annotations

import ast
import warnings
from enum import Enum
from functools import cached_property

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks import mathematics, programs
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.row_task import RowTask
from t3d.tasks.sources import ALL, Row, read_rows, shown
from t3d.types import Problem, ProgramTests


class Kind(Enum):
    """What the rows of a file are graded by; the value is how messages say it."""

    ANSWER = "an answer"
    TESTS = "tests"


class JsonlTask(RowTask):
    """The problems of a file: JSON Lines, an array in `.json`, or Parquet; or of a data set of the hub.

    Args:
        data: file or hub id.

    Raises:
        RequestError: no data. What is wrong in the data shows when they are read.
    """

    name = "jsonl"
    max_new_tokens = 1024

    def __init__(self, data: str | None = None) -> None:
        if data is None:
            raise RequestError("task jsonl is the problems of a file: name it (--data FILE, or data in a recipe)")
        super().__init__(data)

    @property
    def form(self) -> PromptConfig:
        """How questions are put: with the instruction that goes with what they are graded by."""
        match self._kind:
            case Kind.ANSWER:
                return PromptConfig(instruction=mathematics.INSTRUCTION)
            case Kind.TESTS:
                return PromptConfig(instruction=programs.INSTRUCTION)
        return PromptConfig()

    def problem_of(self, row: Row) -> Problem:
        """From `question` (put as the form says) or `prompt` (used as it is); `answer` (text or a number, compared as
        mathematics), or `tests` (Python code, or its statements in a list) and `cases` (of {"input": ..., "output":
        ...} or [input, output], for programs that read and print), or none of these, and then it can only be rolled
        out; `id` or `task_id`, else it is called `<file stem>/<line>`; `solution`, a good response to learn from.
        """
        kind = _kind_of(row)
        question, rendered = _question(row)
        return Problem(
            problem_id=row.own_id("id", "task_id"),
            question=question,
            answer=row.scalar("answer") if kind is Kind.ANSWER else None,
            tests=ProgramTests(_code(row), _cases(row)) if kind is Kind.TESTS else None,
            solution=row.text("solution") if row.has("solution") else None,
            rendered=rendered,
        )

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """The grader of mathematics, or of programs."""
        ungraded = next((row for row in self._rows if _kind_of(row) is None), None)
        if ungraded is not None:
            raise RequestError(f"{ungraded.where}: nothing to grade by; give it `answer`, or `tests` or `cases`")
        return (mathematics.MathGrader if self._kind is Kind.ANSWER else programs.ProgramGrader)(options)

    @cached_property
    def _rows(self) -> list[Row]:
        """Of all splits."""
        return read_rows(self.data, None, ALL)

    @cached_property
    def _kind(self) -> Kind | None:
        """What the rows are graded by; None if none of them has anything."""
        kinds = [(row, kind) for row in self._rows if (kind := _kind_of(row)) is not None]
        if not kinds:
            return None
        _, first = kinds[0]
        for row, kind in kinds:
            if kind is not first:
                raise RequestError(f"{row.where}: has {kind.value}, a row before it {first.value}; make two files")
        return first


def _kind_of(row: Row) -> Kind | None:
    has_answer = row.has("answer")
    has_tests = row.has("tests") or row.has("cases")
    if has_answer and has_tests:
        raise RequestError(f"{row.where}: give either `answer`, or `tests` or `cases`, not both")
    return Kind.ANSWER if has_answer else Kind.TESTS if has_tests else None


def _question(row: Row) -> tuple[str, bool]:
    """The question, and whether it is a whole prompt already."""
    given = [name for name in ("prompt", "question") if row.has(name)]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise RequestError(f"{row.where}: give either `prompt` or `question`, not {found}")
    return row.text(given[0]), given[0] == "prompt"


def _code(row: Row) -> str:
    """The tests that are Python code, as one text."""
    tests = row.fields.get("tests")
    if tests is None:
        return ""
    lines = tests if isinstance(tests, list) else [tests]
    if not lines or not all(isinstance(line, str) for line in lines):
        raise RequestError(f"{row.where}: `tests` must be Python code or a list of statements, not {shown(tests)}")
    code = "\n".join(lines if isinstance(tests, str) else row.texts("tests"))
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in somebody else's text
            nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        raise RequestError(f"{row.where}: `tests` is not Python ({error})") from None
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in nodes):
        raise RequestError(f"{row.where}: `tests` has nothing that can fail; write assert statements")
    return code


def _cases(row: Row) -> tuple[tuple[str, str], ...]:
    """(standard input, expected output) of each case."""
    cases = row.fields.get("cases")
    if cases is None:
        return ()
    pairs = [_pair(case) for case in cases] if isinstance(cases, list) else []
    if not pairs or None in pairs:
        raise RequestError(
            f'{row.where}: `cases` must be a list of {{"input": text, "output": text}} or [input, output], '
            f"not {shown(cases)}"
        )
    return tuple((row.whole("cases", pair[0]), row.whole("cases", pair[1])) for pair in pairs if pair is not None)


def _pair(case: object) -> tuple[str, str] | None:
    values = [case.get("input"), case.get("output")] if isinstance(case, dict) else case
    match values:
        case [str(given), str(expected)]:
            return given, expected
    return None

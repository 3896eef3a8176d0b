"""The grader of programs."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor

from t3d.errors import RequestError
from t3d.sandbox import Limits, find_isolation, run_tests
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions
from t3d.tasks.programs.extract import extract_program, extract_text
from t3d.types import Problem, ProgramTests, Verdict

RULES_VERSION = 1
"""Of what is taken for a response's program, of what is run and of the limits: what changes a verdict."""
LIMITS = Limits()


class ProgramGrader(Grader):
    """Runs the program of a response with the tests of its problem, in a sandbox; "right" if all of them pass.

    Other outcomes are those of `t3d.sandbox.ProgramOutcome`, or "no_answer". A problem without tests compares the
    program's text with its answer.

    Args:
        options: how many programs run at a time, and in what.

    Raises:
        RequestError: the sandbox does not work here.
    """

    def __init__(self, options: GraderOptions = DEFAULT_OPTIONS) -> None:
        self._sandbox = find_isolation(options.sandbox)
        self.version = f"programs {RULES_VERSION} (Python {sys.version_info.major}.{sys.version_info.minor})"
        self.isolation = self._sandbox.description
        self._threads = ThreadPoolExecutor(options.num_workers or os.cpu_count() or 1, thread_name_prefix="program")

    def submit(self, response_text: str, problem: Problem) -> Future[Verdict]:
        """Grade one response.

        Raises:
            RequestError: the problem has neither tests nor answer.
        """
        if problem.tests is not None:
            return self._threads.submit(self._run, response_text, problem.prefix, problem.tests)
        if problem.answer is None:
            raise RequestError(f"problem {problem.problem_id}: no tests to grade by; give it some")
        return self._threads.submit(_compare, response_text, problem.answer)

    def extract_answer(self, response_text: str) -> str | None:
        """The program's text; of a response that goes on from a prefix, what it adds to that."""
        return extract_text(response_text)

    def close(self) -> None:
        """Wait for the programs that run; what is not graded yet is cancelled."""
        self._threads.shutdown(cancel_futures=True)

    def _run(self, response_text: str, prefix: str, tests: ProgramTests) -> Verdict:
        program = extract_program(response_text, prefix)
        if program is None:
            return Verdict(False, "no_answer")
        found = run_tests(program, tests, self._sandbox, LIMITS)
        return Verdict(found.passed, "right" if found.passed else found.outcome, program, found.detail)


def _compare(response_text: str, answer: str) -> Verdict:
    program = extract_text(response_text)
    if program is None:
        return Verdict(False, "no_answer")
    right = program == answer
    return Verdict(right, "right" if right else "wrong", program)

"""The grader of answers in mathematics."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from queue import LifoQueue

from t3d.errors import RequestError
from t3d.tasks.base import DEFAULT_OPTIONS, Grader, GraderOptions, known
from t3d.tasks.mathematics.comparer import Comparer
from t3d.tasks.mathematics.extract import extract_answer
from t3d.tasks.mathematics.protocol import DEFAULT_LIMITS, Limits
from t3d.types import Problem, Verdict

RULES_VERSION = 1
"""Of what is taken for a response's answer, of how it is normalized and of the limits: what changes a verdict."""
LONGEST_ANSWER = 2000
"""Characters; nothing that long is an answer, and it would be slow to find that out."""


class MathGrader(Grader):
    """Takes the last boxed or #### answer of a response and has math-verify compare it with the problem's.

    Comparing runs in worker processes under limits, for some answers take forever or more memory than there is; the
    first process starts with the first response that needs one.

    Args:
        options: how many processes.
        limits: of one comparison; others than the default may change verdicts.
    """

    def __init__(self, options: GraderOptions = DEFAULT_OPTIONS, limits: Limits = DEFAULT_LIMITS) -> None:
        num_workers = options.num_workers or os.cpu_count() or 1
        self.version = f"math-verify {version('math-verify')}, answers {RULES_VERSION}"
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grade")
        self._comparers = [Comparer(limits) for _ in range(num_workers)]
        self._idle: LifoQueue[Comparer] = LifoQueue()  # the last used first: no more processes than needed
        for comparer in self._comparers:
            self._idle.put(comparer)

    def submit(self, response_text: str, problem: Problem) -> Future[Verdict]:
        """Grade one response.

        An answer that is the reference letter by letter is right without a comparison: so it is under any reading, also
        where math-verify has none.

        Raises:
            RequestError: the problem has no answer.
        """
        if problem.answer is None:
            raise RequestError(f"problem {problem.problem_id}: no answer to grade by; give it one")
        answer, reference = extract_answer(response_text), problem.answer.strip()
        if answer is None:
            return known(Verdict(False, "no_answer"))
        if answer == reference:
            return known(Verdict(True, "right", answer))
        if max(len(answer), len(reference)) > LONGEST_ANSWER:
            return known(Verdict(False, "unparsed", answer, f"longer than {LONGEST_ANSWER} characters"))
        return self._threads.submit(self._compare, answer, reference)

    def extract_answer(self, response_text: str) -> str | None:
        """The last boxed or #### answer."""
        return extract_answer(response_text)

    def close(self) -> None:
        """End all processes; what is not graded yet is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for comparer in self._comparers:
            comparer.close()
        self._threads.shutdown()

    def _compare(self, answer: str, reference: str) -> Verdict:
        comparer = self._idle.get()
        try:
            found = comparer.compare(answer, reference)
        finally:
            self._idle.put(comparer)
        return Verdict(found.outcome == "right", found.outcome, answer, found.detail)

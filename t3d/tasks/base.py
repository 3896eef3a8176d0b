"""What a task is: problems, how they are put, and a grader."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from t3d.config import PromptConfig
from t3d.sandbox import require_known
from t3d.types import Problem, Verdict


@dataclass(frozen=True, slots=True)
class GraderOptions:
    """How graders work; none of it changes a verdict. An unknown sandbox raises `RequestError` on construction.

    Attributes:
        num_workers: responses graded at a time; None is as many as there are cores.
        sandbox: what programs run in, as in `t3d.sandbox.find_isolation`.
    """

    num_workers: int | None = None
    sandbox: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.sandbox)


DEFAULT_OPTIONS = GraderOptions()


class Grader(ABC):
    """Tells right responses from wrong ones; a context manager, for it may hold processes.

    Nothing is started before the first response.

    Attributes:
        version: what a verdict depends on beside the response, as results record it: two results with different ones
            cannot be compared.
        isolation: what the programs that it runs are kept in; None if it runs none.
    """

    version: str
    isolation: str | None = None

    @abstractmethod
    def submit(self, response_text: str, problem: Problem) -> Future[Verdict]:
        """Grade one response, maybe in the background. The future never raises for anything a response may hold."""

    @abstractmethod
    def extract_answer(self, response_text: str) -> str | None:
        """What a response gives as its answer, for another response to be graded by; None if it gives none."""

    def close(self) -> None:  # noqa: B027  (not abstract: some hold none)
        """Let go of processes, if it holds any; what is not graded yet is cancelled."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Task(Protocol):
    """A source of graded problems.

    Attributes:
        name: in `t3d.tasks.TASKS`.
        test_split: what `t3d eval` measures on.
        max_new_tokens: longest answer worth waiting for.
        default_limit: problems that `t3d eval` takes unless told otherwise; None is all.
        is_endless: problems are drawn as many as are asked for: there is no order of all that could be shuffled.
    """

    name: str
    test_split: str
    max_new_tokens: int
    default_limit: int | None
    is_endless: bool

    @property
    def form(self) -> PromptConfig:
        """How its questions are put unless a request says otherwise; may hang on what the data hold."""

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `count` problems of a split; None is all, which an endless task refuses.

        `seed` chooses the problems of an endless task; item i depends on (split, seed, i) only, never on `count`.
        """

    def grader(self, options: GraderOptions = DEFAULT_OPTIONS) -> Grader:
        """A grader of this task's responses.

        Raises:
            RequestError: the options ask for what this machine does not have.
        """


def choose(problems: Sequence[Problem], limit: int | None, shuffle: int | None) -> list[Problem]:
    """The first `limit` problems, in an order of their own for each `shuffle`; None keeps the source's order.

    A place in that order depends on `shuffle` and the problems' ids alone: of fewer problems, they stand in the same
    order.
    """

    def place(problem: Problem) -> bytes:
        return hashlib.sha256(f"{shuffle}/{problem.problem_id}".encode()).digest()

    return (list(problems) if shuffle is None else sorted(problems, key=place))[:limit]


def take_problems(
    task: Task, split: str, limit: int | None, shuffle: int | None = None, seed: int = 0
) -> list[Problem]:
    """The problems that a request chooses: `choose` from a whole split; of an endless task the first `limit`.

    Args:
        seed: chooses the problems of an endless task.

    Raises:
        RequestError: no such data or split, or an endless task without limit or with `shuffle`.
    """
    if shuffle is None:
        return task.problems(split, limit, seed)
    return choose(task.problems(split, None, seed), limit, shuffle)


class DirectGrader(Grader):
    """A grader without processes: two functions and their version.

    Args:
        version: as in `Grader`.
        grade: (response text, reference answer) -> verdict; quick, and never raises.
        extract: response text -> its answer.
    """

    def __init__(
        self, version: str, grade: Callable[[str, str], Verdict], extract: Callable[[str], str | None]
    ) -> None:
        self.version = version
        self._grade, self._extract = grade, extract

    def submit(self, response_text: str, problem: Problem) -> Future[Verdict]:
        """Grade one response at once."""
        return known(self._grade(response_text, problem.answer or ""))

    def extract_answer(self, response_text: str) -> str | None:
        """What a response gives as its answer."""
        return self._extract(response_text)


def known(verdict: Verdict) -> Future[Verdict]:
    """A verdict that needs no waiting, as `Grader.submit` gives it."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future

"""A benchmark and a backend that several test files share: quick, reproducible, and wrong in every way there is."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from t3d.config import PromptConfig
from t3d.evaluation import Benchmark
from t3d.types import Problem, Verdict


def judge(text: str) -> Verdict:
    """Right are responses of an even number of characters; some cannot be read."""
    if len(text) % 5 == 0:
        return Verdict(False, "unparsed", detail=f"{len(text)} characters")
    right = len(text) % 2 == 0
    return Verdict(right, "right" if right else "wrong", answer=text[:3])


class ThreadedGrader:
    """`judge`, by two threads.

    Attributes:
        submitted: ids of the problems, in the order in which responses came.
    """

    def __init__(self, version: str = "even 1") -> None:
        self.version, self.isolation = version, None
        self.submitted: list[str] = []
        self._threads = ThreadPoolExecutor(2)

    def submit(self, response_text: str, problem: Problem) -> Future:
        self.submitted.append(problem.problem_id)
        return self._threads.submit(judge, response_text)

    def extract_answer(self, response_text: str) -> str | None:
        return None

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


class PaperTask:
    """Questions that are numbers.

    Attributes:
        graders: that it gave.
    """

    name = "paper"
    form = PromptConfig(style="plain")
    default_limit = None

    def __init__(self, count: int = 7, make_grader=ThreadedGrader) -> None:
        self._count, self._make_grader = count, make_grader
        self.graders: list = []

    def problems(self, split: str, count: int | None = None, seed: int = 0) -> list[Problem]:
        ids = range(self._count if count is None else min(count, self._count))
        return [Problem(f"{split}/{i}", f"What is {i}?", answer=str(i)) for i in ids]

    def grader(self, options=None):
        self.graders.append(self._make_grader())
        return self.graders[-1]


def paper_benchmark(count: int = 7, make_grader=ThreadedGrader) -> Benchmark:
    return Benchmark(PaperTask(count, make_grader), "test")


class Dice:
    """A backend whose responses follow from seed and setting, in an order of its own; one in five fails.

    Args:
        stop_after: responses after which it raises `error`.

    Attributes:
        decoded: seeds of the requests that it answered, in order.
    """

    name = "dice"

    def __init__(self, stop_after: int | None = None, error: BaseException | None = None) -> None:
        self._stop_after, self._error = stop_after, error
        self.decoded: list[int] = []

    def run(self, requests):
        for request in sorted(requests, key=lambda each: each.seed % 1009):
            if len(self.decoded) == self._stop_after:
                raise self._error
            rng = np.random.default_rng([request.seed, request.steps_per_block])
            length, prefill = int(rng.integers(1, 12)), 1
            tokens = rng.integers(200, 400, size=length).tolist()
            steps = np.sort(rng.integers(1, 6, size=length)).tolist()
            failure = "the model's logits were not finite" if request.seed % 5 == 0 else None
            self.decoded.append(request.seed)
            yield (
                request,
                request.generation(tokens, steps, [0.5] * length, prefill + steps[-1], float(rng.random()), failure),
            )

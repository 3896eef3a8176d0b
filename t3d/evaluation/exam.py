"""What is asked: every problem, sample by sample, as the engine and the grader get it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.evaluation.benchmarks import Benchmark
from t3d.noise import derive_seeds
from t3d.tasks.prompts import put_questions
from t3d.types import Decoding, Problem


@dataclass(frozen=True, slots=True)
class Item:
    """One response to make.

    Attributes:
        problem: as its grader gets it.
        prompt_ids: its rendered prompt, tokenised.
        sample: 0-based number of the response to the problem.
        seed: it is decoded with, at every setting.
    """

    problem: Problem
    prompt_ids: list[int]
    sample: int
    seed: int


@dataclass(frozen=True, slots=True)
class Exam:
    """All that is asked, at one setting after the other.

    Attributes:
        benchmark: whose problems are asked, and whose grader marks the answers.
        settings: resolved.
        items: problem by problem, each with its samples.
        num_samples: responses to each problem.
        seed: of decoding, and of the problems of an endless benchmark.
        shuffle: seed of the order that the problems were taken from; None is the source's own.
        form: resolved, of the prompts.
        data_fingerprint: of the problems with their answers and tests, whatever their order and form.
        prompt_fingerprint: of the rendered prompts, whatever their order.
    """

    benchmark: Benchmark
    settings: list[Decoding]
    items: list[Item]
    num_samples: int
    seed: int
    shuffle: int | None
    form: PromptConfig
    data_fingerprint: str
    prompt_fingerprint: str


def prepare(
    engine: Engine,
    benchmark: Benchmark,
    settings: Sequence[Decoding],
    *,
    limit: int | None = None,
    seed: int = 0,
    shuffle: int | None = None,
    samples: int = 1,
    prompt: PromptConfig,
) -> Exam:
    """The exam of these options; nothing is decoded.

    Args:
        engine: with a tokenizer.
        settings: resolved, that it will be decoded at.
        others: as in `t3d.evaluation.evaluate`.

    Raises:
        RequestError: problems or a form that cannot be had, a prompt that cannot be decoded at one of the settings, or
            several samples of a problem that would all be the same.
    """
    if samples < 1:
        raise RequestError(f"samples must be at least 1, not {samples}")
    if samples > 1 and any(setting.temperature == 0 for setting in settings):
        raise RequestError(f"{samples} samples at temperature 0 are all the same: raise the temperature, or take one")
    problems = benchmark.problems(limit, shuffle, seed)
    questions = put_questions(benchmark.task, problems, prompt, engine.tokenizer)
    prompt_ids = engine.encode([each.text for each in questions.prompts])
    for setting in settings:
        _check(engine, benchmark, questions.problems, prompt_ids, setting)
    items = [
        Item(problem, ids, sample, response_seed)
        for problem, ids in zip(questions.problems, prompt_ids, strict=True)
        for sample, response_seed in enumerate(seeds_of(problem.problem_id, samples, seed))
    ]
    prompts = ([each.prompt_id, each.text] for each in questions.prompts)
    return Exam(
        benchmark=benchmark,
        settings=list(settings),
        items=items,
        num_samples=samples,
        seed=seed,
        shuffle=shuffle,
        form=questions.form,
        data_fingerprint=_fingerprint(map(asdict, problems)),
        prompt_fingerprint=_fingerprint(prompts),
    )


def _check(
    engine: Engine,
    benchmark: Benchmark,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    setting: Decoding,
) -> None:
    """Refuse prompts that cannot be decoded: the engine counts prompts, here the problem is named."""
    for problem, prompt_ids in zip(problems, prompts, strict=True):
        try:
            engine.check([prompt_ids], setting)
        except RequestError as error:
            said = str(error).replace("prompt 0 ", f"the prompt of {problem.problem_id} ", 1)
            raise RequestError(f"benchmark {benchmark.name}: {said}") from error


def seeds_of(problem_id: str, samples: int, seed: int) -> list[int]:
    """The seeds of a problem's samples, whatever else is asked; of fewer samples, the first of them."""
    digest = hashlib.sha256(f"{seed}/{problem_id}".encode()).digest()
    return derive_seeds(int.from_bytes(digest[:8], "big") >> 1, samples)


def _fingerprint(rows: Iterable[object]) -> str:
    """16 hex digits of a set of rows."""
    return hashlib.sha256("\n".join(sorted(map(json.dumps, rows))).encode()).hexdigest()[:16]

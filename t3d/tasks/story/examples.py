"""Endless examples of a split, each a function of (split, seed, index) and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from t3d.errors import RequestError
from t3d.tasks.prompts import render_question, render_response
from t3d.tasks.story.draws import Draws
from t3d.tasks.story.problems import SPLITS, Problem, draw_problem, split_of
from t3d.tasks.story.wording import word_answer, word_question


@dataclass(frozen=True, slots=True)
class Example:
    """A problem, told: `prompt` + `response` is one training document (the eos token follows).

    Attributes:
        prompt_id: `story/<split>/<seed>/<index>`.
        problem: the numbers and events behind the words.
        question: the words of the problem.
        prompt: the rendered question, up to where the model starts writing.
        response: one of many good worked answers; ends in `#### <answer>`.
    """

    prompt_id: str
    problem: Problem
    question: str
    prompt: str
    response: str


def generate(split: str, seed: int) -> Iterator[Example]:
    """The examples of a split, without end."""
    if split not in SPLITS:
        raise RequestError(f"unknown split {split!r} of task story: choose one of {', '.join(SPLITS)}")
    return (_example(split, seed, index) for index in count())


def make(split: str, number: int, seed: int) -> list[Example]:
    """The first `number` examples of a split."""
    if number < 0:
        raise RequestError(f"count must be 0 or more, not {number}")
    return list(islice(generate(split, seed), number))


def _example(split: str, seed: int, index: int) -> Example:
    """Draw problems until one falls into the split, then tell it."""
    prompt_id = f"story/{split}/{seed}/{index}"
    for attempt in count():
        draws = Draws(f"{prompt_id}/{attempt}")
        problem = draw_problem(draws)
        if split_of(problem) == split:
            break
    question, answer = word_question(problem, draws), word_answer(problem, draws)
    return Example(prompt_id, problem, question, render_question(question), render_response(answer))

"""Telling a problem in words: the question, and the worked answer in one of very many equally good wordings."""

from __future__ import annotations

from t3d.tasks.story.draws import Draws
from t3d.tasks.story.forms import (
    ANSWER_ENDS,
    OPENINGS,
    QUESTION_ENDS,
    QUESTION_EVENTS,
    QUESTION_STARTS,
    RESULTS,
    STEPS,
    SUMS,
)
from t3d.tasks.story.problems import OPERATORS, Problem


def word_question(problem: Problem, draws: Draws) -> str:
    """The story and what is asked, on one line."""
    words = _words(problem)
    sentences = [draws.pick(QUESTION_STARTS).format(n=problem.start, **words)]
    for event in problem.events:
        sentences.append(draws.pick(QUESTION_EVENTS[event.kind]).format(k=event.amount, **words))
    sentences.append(draws.pick(QUESTION_ENDS).format(**words))
    return " ".join(sentences)


def word_answer(problem: Problem, draws: Draws) -> str:
    """A sentence or two for each event with its arithmetic, a closing sentence, and `#### 42` on its own line."""
    words = _words(problem)
    counts = problem.counts
    sentences = []
    for event, before, after in zip(problem.events, counts, counts[1:], strict=False):
        sum_ = draws.pick(SUMS[OPERATORS[event.kind]]).format(a=before, k=event.amount, c=after)
        form = f"{draws.pick(OPENINGS)} {draws.pick(STEPS[event.kind])}{draws.pick(RESULTS)}"
        sentences.append(form.format(k=event.amount, sum=sum_, **words))
    sentences.append(draws.pick(ANSWER_ENDS).format(n=counts[-1], **words))
    return f"{' '.join(sentences)}\n#### {counts[-1]}"


def _words(problem: Problem) -> dict[str, str]:
    person = problem.person
    return {
        "name": person.name,
        "he": person.he,
        "He": person.he.capitalize(),
        "him": person.him,
        "his": person.his,
        "things": problem.thing,
    }

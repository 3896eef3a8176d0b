"""What sampling finds: the majority's answer, how many answers and wordings there are, how sure the model was.

Pure functions of the samples of one problem; `t3d.evaluation.answers` makes figures of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from t3d.tasks.mathematics.notation import normalize

Vote = tuple[bool, str | Decimal]
"""Of a response: whether its answer is right, and if not, what the answer is. Equal votes are for the same answer."""

LEAST_CONFIDENCE = 2.0**-149

_NUMBER = re.compile(r"(?:\\?\$)?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)")


def vote_of(answer: str | None, right: bool) -> Vote | None:
    """What a response votes for; None if it gives no answer.

    Right answers are one answer, since the grader found each equal to the reference. Wrong ones are the same where they
    are the same number, or the same text once the mathematics grader's rewriting and all blanks are gone. They are not
    compared with each other by math-verify, which would take n^2 comparisons a problem: wrong formulas that are written
    in several ways count as several answers.

    Args:
        answer: what the response gives as its answer, as in `Verdict`.
        right: the verdict.
    """
    if answer is None:
        return None
    return (True, "") if right else (False, _answer_key(answer))


def majority_share(votes: Sequence[Vote | None]) -> float:
    """The chance that the most frequent answer of a problem's samples is right, ties broken by lot.

    Of k answers that are equally frequent, a right one counts 1/k: the expected value. Responses without an answer do
    not vote; if none has one, the majority is wrong.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    leaders = [vote for vote, count in counts.items() if count == max(counts.values())]
    return sum(right for right, _ in leaders) / max(1, len(leaders))


def num_answers(votes: Sequence[Vote | None]) -> int:
    """Different answers; giving none is not one."""
    return len({vote for vote in votes if vote is not None})


def surprisal(confidences: Sequence[float]) -> float:
    """Nats: -sum of log(confidence) over a response's tokens, each the probability under what it was drawn from.

    A probability that was rounded to 0 counts as the least that float32 can tell from it.
    """
    return math.fsum(-math.log(max(each, LEAST_CONFIDENCE)) for each in confidences)


def _answer_key(answer: str) -> str | Decimal:
    text = normalize(answer)
    number = _NUMBER.fullmatch(text)
    return Decimal(number[1].replace(",", "")) if number else "".join(text.split())  # decimals compare by value

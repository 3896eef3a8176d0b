"""Whether two answers say the same, by math-verify. Only `worker` imports this module, for sympy is slow to import."""

from __future__ import annotations

from itertools import product
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from t3d.tasks.mathematics.notation import normalize
from t3d.tasks.mathematics.protocol import Comparison

_LATEX_ALONE = (LatexExtractionConfig(boxed_match_priority=0),)
"""No search for numbers in prose: the answer has been found, and is read as a whole or not at all."""


def compare(answer: str, reference: str) -> Comparison:
    """Compare an answer with the reference; math-verify treats the two differently.

    Runs without a time limit: the caller has one.
    """
    theirs, ours = read(answer), read(reference)
    problem = _unreadable("it", theirs) or _unreadable("the reference", ours)
    for gold, found in product(ours, theirs):
        try:
            if verify(gold, found, timeout_seconds=None, raise_on_error=True):
                return Comparison("right")
        except Exception as error:  # whatever sympy raises on whatever a model writes
            problem = f"comparing failed: {type(error).__name__}"
    return Comparison("unparsed", problem) if problem else Comparison("wrong")


def read(answer: str) -> list[Any]:
    """What math-verify makes of an answer: [sympy expression, text], [text] if it cannot be read, or []."""
    parsed: list[Any] = parse(rf"\boxed{{{normalize(answer)}}}", _LATEX_ALONE, parsing_timeout=None)
    return parsed


def _unreadable(name: str, parsed: list[Any]) -> str:
    return "" if any(not isinstance(each, str) for each in parsed) else f"math-verify cannot read {name}"

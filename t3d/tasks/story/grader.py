"""The exact grader of the built-in task."""

from __future__ import annotations

import re
from decimal import Decimal

from t3d.types import Verdict

_MARKER = "####"
_NUMBER = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)(?![0-9]|[.,][0-9])")


def extract_answer(response_text: str) -> str | None:
    """The number right after the last `####`, as it is written; None if there is none."""
    _, marker, tail = response_text.rpartition(_MARKER)
    found = _NUMBER.match(tail) if marker else None
    return found[1] if found else None


def judge(response_text: str, answer: str) -> Verdict:
    """Whether the number right after the last `####` equals `answer`; a response without one is wrong."""
    found = extract_answer(response_text)
    if found is None:
        return Verdict(False, "no_answer")
    right = Decimal(found) == Decimal(answer)
    return Verdict(right, "right" if right else "wrong", found)

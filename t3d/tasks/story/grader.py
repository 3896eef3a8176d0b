"""The exact grader of the built-in task."""

from __future__ import annotations

import re
from decimal import Decimal

_MARKER = "####"
_NUMBER = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)(?![0-9]|[.,][0-9])")


def grade(response_text: str, answer: str) -> bool:
    """Whether the number right after the last `####` equals `answer`; a response without one is wrong."""
    _, marker, tail = response_text.rpartition(_MARKER)
    found = _NUMBER.match(tail)
    return bool(marker) and found is not None and Decimal(found[1]) == Decimal(answer)

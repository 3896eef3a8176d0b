"""What a response gives as its answer."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_MARKER = re.compile(r"#{4,}+[ \t]*+(?![A-Za-z])([^\n]*)")
"""GSM8K's, which few-step decoding may double; followed by a letter it is a Markdown heading."""
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""Braces, and escapes to step over: the brace of `\\{` is a character, that of `\\\\{` is not."""


def extract_answer(response: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}`, or the rest of the line after the last `####`: the later one.

    The last one alone counts: if it is empty, or a box that is never closed (a response cut off in mid-answer), the
    response gives no answer, whatever an earlier one says. `\boxed 18` is a box around what follows up to the next
    space or dollar.

    Returns:
        The answer without surrounding blanks and Markdown stars; None if there is none.
    """
    box, marker = _last(_BOX, response), _last(_MARKER, response)
    if box is not None:
        content, end = _boxed(response, box.end())
        if marker is None or marker.start() < end:
            return _trim(content or "")
    return _trim(marker[1]) if marker else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=re.Match.start, default=None)


def _boxed(text: str, start: int) -> tuple[str | None, int]:
    """(content, end) of a box whose argument begins at `start`; content None if the box is never closed."""
    if not text.startswith("{", start):
        bare = re.split(r"[\s$]", text[start:], maxsplit=1)[0]
        return bare.rstrip(".,;"), start + len(bare)
    depth = 0
    for token in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[start + 1 : token.start()], token.end()
    return None, len(text)


def _trim(text: str) -> str | None:
    return text.strip().strip("*").strip() or None

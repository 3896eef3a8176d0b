"""Chat templates are programs that came with a model: here they run for a limited time.

transformers runs them in Jinja's sandbox, from which nothing of Python can be reached. What the sandbox allows is to
go on for ever: loops in loops, macros that call themselves twice, powers of powers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from types import FrameType
from typing import Any, TypeVar

MAX_STEPS = 300_000
"""Lines of Python, as Jinja translates templates: a quarter of a second or so. A long chat takes some thousands."""
_TEMPLATE = "<template>"
"""What Jinja calls the file of a template that came as text."""
_BEFORE_OPERANDS = ("(", ",")
"""After these, ** is no power but a mapping of arguments."""

Result = TypeVar("Result")


class TemplateLimitError(Exception):
    """A template that asks for too much."""


def within_steps(work: Callable[[], Result], max_steps: int = MAX_STEPS) -> Result:
    """What `work` returns; the templates in it may take so many steps together.

    Raises:
        TemplateLimitError: they take more.
    """
    left = max_steps

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TemplateLimitError(f"it takes more than {max_steps:,} steps")
        return count

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return count(frame, event, argument) if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(on_call)  # of this thread; only a template's own lines are looked at
    try:
        return work()
    finally:
        sys.settrace(before)


@lru_cache
def check_powers(template: str) -> None:
    """Refuse powers: one step of a template can ask for a number of a billion digits, and no chat needs any.

    Raises:
        TemplateLimitError: there is one.
        jinja2.TemplateSyntaxError: it is no template.
    """
    from jinja2 import Environment  # slow, and most commands put no chats

    before = ""
    for _, kind, text in Environment().lex(template):
        if kind == "whitespace":
            continue
        if kind == "operator" and text == "**" and before not in _BEFORE_OPERANDS:
            raise TemplateLimitError("it raises a number to a power")
        before = text

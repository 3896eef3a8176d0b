"""The two ways in which a command refuses or fails, which the command line turns into exit codes; how it is told."""

import sys
from contextlib import suppress

LONGEST_MESSAGE = 500
"""Characters."""
_END = 140
"""Characters at the end of a message, where the cure stands, that stay however long it is."""


class RequestError(ValueError):
    """The request is wrong (exit code 2): one line that names the argument and the cure."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class WorkError(RuntimeError):
    """The request was fine but the work failed (exit code 1): one line that says what happened."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message that any terminal, log and JSON can show, whatever a file or a library has put into it.

    White space becomes single spaces, what cannot be printed (control characters, halves of surrogate pairs) an escape
    such as `\\\\x1b`, and of a text that is too long the middle is left out.
    """
    if len(text) > 4 * LONGEST_MESSAGE:
        text = _without_middle(text)
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return _without_middle(line)


def message_of(error: Exception, limit: int = 200) -> str:
    """What a library's exception says, or else what it is, fit for a message of ours."""
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_middle(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE - _END - 5]} ... {text[-_END:]}"


def tell(line: str) -> None:
    """Print a line on stderr; where it cannot be written, as in a log on a full disk, it is left out."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)

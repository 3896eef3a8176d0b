"""The program of a response."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

PYTHON = {"", "python", "py", "python3"}
"""Languages of a fenced block that may be Python."""
_OPENING = re.compile(r"(?P<indent>\s*)```\s*(?P<language>\w*).*")


@dataclass(slots=True)
class Block:
    """A fenced block.

    Attributes:
        language: after the opening fence, lower case.
        indent: of the opening fence; its lines may share it.
        start: 0-based line of the text that the fence stands on.
        lines: within the fences.
    """

    language: str
    indent: str
    start: int
    lines: list[str]

    @property
    def code(self) -> str:
        """The lines, without the fence's indent."""
        return "\n".join(line.removeprefix(self.indent) for line in self.lines)


def extract_program(response: str, prefix: str = "") -> str | None:
    """The program that a response gives; None if there is none.

    It is the last fenced Python block, closed or not: a response that was cut off still counts. Where the prefix opened
    a block already, that block is the program if it is Python and the response added to it; what follows are examples.
    Without any fence the whole is the program, if it is Python.

    Args:
        response: what the model wrote.
        prefix: how its prompt ended, such as an opening fence and the head of a function.
    """
    text = prefix + response
    blocks = [each for each in fenced_blocks(text) if each.language in PYTHON and each.code.strip()]
    begun = prefix.count("\n")
    if blocks and blocks[0].start < begun and _goes_on(blocks[0], prefix):
        return blocks[0].code
    if blocks:
        return blocks[-1].code
    whole = text.strip("\n")
    return whole if whole.strip() and "```" not in whole and is_python(whole) else None


def _goes_on(block: Block, prefix: str) -> bool:
    """Whether the block that the prefix opened is Python that holds more than the prefix."""
    (*_, begun) = fenced_blocks(prefix)
    return block.code.strip() != begun.code.strip() and is_python(block.code)


def extract_text(response: str) -> str | None:
    """The code of a response whose prefix is not known.

    It goes on from a prefix if its beginning is code, which then ends at the first fence; else `extract_program`.
    """
    beginning = response.partition("```")[0].rstrip()
    goes_on = bool(beginning) and (beginning[0].isspace() or is_python(beginning))
    return beginning if goes_on else extract_program(response)


def fenced_blocks(text: str) -> list[Block]:
    """All fenced blocks; an open one also ends where Python is fenced anew, and on a line that ends in a fence."""
    blocks: list[Block] = []
    is_open = False
    for number, line in enumerate(text.split("\n")):
        opening = _OPENING.fullmatch(line)
        if opening and (not is_open or opening["language"].lower() in PYTHON - {""}):
            blocks.append(Block(opening["language"].lower(), opening["indent"], number, []))
            is_open = True
        elif is_open:
            content, fence, _ = line.rstrip().rpartition("```") if line.rstrip().endswith("```") else (line, "", "")
            is_open = not fence
            if content.strip() or not fence:
                blocks[-1].lines.append(content)
    return blocks


def is_python(text: str) -> bool:
    """Whether a text is Python's grammar."""
    try:
        with warnings.catch_warnings():  # of invalid escapes in strings
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

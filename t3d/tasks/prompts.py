"""Prompts: the one place where a question becomes the text that a model sees, and the reader of prompt files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t3d.errors import RequestError
from t3d.types import Prompt


def render_question(question: str) -> str:
    """The plain, chat-free prompt; it ends where the model starts writing.

    It ends in ":" and a response starts with a space, so tokenising the two apart or together gives the same ids.
    """
    return f"Question: {question}\nAnswer:"


def render_response(answer: str) -> str:
    """The text that follows a prompt of `render_question`, before the eos token."""
    return f" {answer}"


def read_prompts(path: str | Path, render: Callable[[str], str] = render_question) -> list[Prompt]:
    """Read a JSON Lines file of prompts; blank lines are skipped.

    Each line is an object with `prompt` (used as it is) or `question` (goes through `render`), and optionally
    `id` or `task_id` (otherwise `<file stem>/<line number>`) and `answer`.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    line_of_id: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        prompt = _to_prompt(_parse(line, where), where, f"{path.stem}/{number}", render)
        first = line_of_id.setdefault(prompt.prompt_id, number)
        if first != number:
            raise RequestError(
                f"{where}: id {prompt.prompt_id!r} is already used in line {first}; give each line its own"
            )
        prompts.append(prompt)
    if not prompts:
        raise RequestError(f"{path} holds no prompts; write one JSON object a line, with `prompt` or `question`")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, text) of the lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path} ({error.strerror}); name a JSONL file") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value is too long or too deep"
        raise RequestError(f"{where}: not JSON ({reason}); write one object a line") from None
    if not isinstance(row, dict):
        raise RequestError(f"{where}: not a JSON object; write one object a line, with `prompt` or `question`")
    return row


def _to_prompt(row: dict[str, Any], where: str, default_id: str, render: Callable[[str], str]) -> Prompt:
    return Prompt(
        prompt_id=_id(row, where, default_id),
        text=_text(row, where, render),
        answer=None if row.get("answer") is None else _scalar(row, "answer", where),
    )


def _text(row: dict[str, Any], where: str, render: Callable[[str], str]) -> str:
    given = [field for field in ("prompt", "question") if row.get(field) is not None]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise RequestError(f"{where}: give either `prompt` or `question`, not {found}")
    value = row[given[0]]
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{where}: `{given[0]}` must be text that is not blank")
    return value if given[0] == "prompt" else render(value)


def _id(row: dict[str, Any], where: str, default_id: str) -> str:
    for field in ("id", "task_id"):
        if row.get(field) is not None:
            return _scalar(row, field, where)
    return default_id


def _scalar(row: dict[str, Any], field: str, where: str) -> str:
    """Text or a number, as text."""
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise RequestError(f"{where}: `{field}` must be text or a number, not {json.dumps(value)[:40]}")
    return str(value)

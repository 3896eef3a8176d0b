"""Decisions that a fuzzer takes, and valid documents that go wrong by them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Draw(Protocol):
    """Where decisions come from: atheris' bytes, hypothesis' choices, or a random generator."""

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; 0 where the source has run dry."""


def pick(draw: Draw, items: Sequence[Item]) -> Item:
    """One of them."""
    return items[draw.below(len(items))]


HUGE = 10**30
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    HUGE,
    -HUGE,
    0.0,
    -0.0,
    0.5,
    1.5,
    1e-308,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "0",
    "-1",
    "nan",
    "null",
    "true",
    "\0",
    "a\0b",
    "\ud800",
    "a\ud83d",
    "\ufeff",
    "\x1b[2J",
    "\r\n",
    "a\nb",
    "\u202e",
    "é" * 300,
    "x" * 2000,
    "../../etc/passwd",
    "/dev/zero",
    "{{ ''.__class__.__mro__ }}",
    "{prefix}",
    "{0.__class__}",
    "%s%n",
    "1" * 5000,
    "[" * 400,
    "assert f(",
    "-" * 4000 + "1",
    "assert " + "(" * 150 + "1" + ")" * 150,
    "x" + ".y" * 3000,
    "2024-01-01",
    "####",
    "\\boxed{",
    "<|mask|>",
    "[MASK]",
    "1e999",
    "0x10",
    "train",
    "all",
    [],
    {},
    [[]],
    [None],
    [0],
    [-1],
    ["a"],
    [[1, 2], [3]],
    {"a": {}},
    {"": ""},
    {"\ud800": 1},
    {"__class__": "x"},
    [0.1] * 50,
    ["a"] * 100,
    list(range(70)),
    {"name": "t3d"},
    {"input": "1", "output": "2"},
    ["1", "2"],
)
"""What stands in for a value; the last of a JSON document's depth and size is left to `bombs`."""
BYTES: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b"\r",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xed\xa0\x80",
    b"\xc3\x28",
    b" " * 500,
    b"\x80\x04cos\nsystem\n",
    b"\x1b]0;x\x07",
    b"\xff" * 8,
    b"\0" * 8,
    b"\xff\xff\xff\xff\xff\xff\xff\x0f",
    b"\x01",
    b"\x7f",
)


def nodes_of(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below a document."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        container = waiting.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            found.append((container, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def broken(draw: Draw, document: Any, values: Sequence[Any] = VALUES) -> Any:
    """A copy of a document of mappings and lists with up to three faults; none if the first decision is 0."""
    document = copy.deepcopy(document)
    for _ in range(draw.below(4)):
        nodes = nodes_of(document)
        if not nodes:
            break
        _break_one(draw, *pick(draw, nodes), pick(draw, nodes), values)
    return document


def _break_one(draw: Draw, container: Any, key: Any, other: tuple[Any, Any], values: Sequence[Any]) -> None:
    match draw.below(8):
        case 0 | 1 | 2:
            container[key] = copy.deepcopy(pick(draw, values))
        case 3:
            del container[key]
        case 4:
            container[key] = copy.deepcopy(other[0][other[1]]) if _is_there(*other) else None
        case 5:
            container[key] = [container[key]] * (1 + draw.below(3))
        case 6 if isinstance(container, dict):
            container[_name(draw)] = container.pop(key)
        case 7 if isinstance(container[key], int | float) and not isinstance(container[key], bool):
            container[key] = pick(
                draw, (-container[key], container[key] * 10**9, str(container[key]), container[key] + 0.5)
            )
        case _ if isinstance(container[key], str):
            place = draw.below(len(container[key]) + 1)
            container[key] = f"{container[key][:place]}{pick(draw, TEXTS)}{container[key][place:]}"
        case _:
            container[key] = {_name(draw): container[key]}


TEXTS = tuple(each for each in VALUES if isinstance(each, str) and each)


def _name(draw: Draw) -> str:
    return pick(draw, (*TEXTS, "lr", "seed", "split", "id", "schema_version", "model", "name"))


def _is_there(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def broken_bytes(draw: Draw, data: bytes, most: int = 3) -> bytes:
    """A copy with up to `most` faults: bytes put in, overwritten, taken out, repeated, or the rest cut off."""
    for _ in range(draw.below(most + 1)):
        start = draw.below(len(data) + 1)
        end = min(len(data), start + draw.below(40))
        new = pick(draw, BYTES)
        match draw.below(6):
            case 0:
                data = data[:start] + new + data[start:]
            case 1:
                data = data[:start] + new + data[start + len(new) :]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:end] * 2 + data[end:]
            case 4:
                data = data[:start] + bytes([draw.below(256)]) + data[start + 1 :]
            case 5:
                data = data[:start]
    return data


def as_json(draw: Draw, document: Any) -> bytes:
    """JSON text, now and then with a name twice, other ends of lines, a byte order mark, or bytes at fault."""
    text = json.dumps(document, indent=pick(draw, (None, 1)), ensure_ascii=draw.below(4) != 3)
    match draw.below(8):
        case 5 if text.startswith("{") and len(text) > 2:
            text = text[:-1].rstrip() + "," + text[1:]
        case 6:
            text = pick(draw, ("\ufeff", "", "\0")) + text.replace("\n", "\r\n")
        case 7:
            return broken_bytes(draw, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")

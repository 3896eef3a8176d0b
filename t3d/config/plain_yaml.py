"""YAML as people write settings in it: plain values of bounded size, no name twice, nothing that runs."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

MAX_CHARACTERS = 65_536
MAX_VALUES = 20_000
"""With what aliases repeat written out."""
MAX_DEPTH = 40
MAX_BRACKETS = 2 * MAX_DEPTH
"""Open at once, those in texts and comments counted too: PyYAML looks at each open one again for every word."""
MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: mappings with names as keys, lists, texts, numbers, flags, null.

    What aliases repeat is there several times, so that a change to one place changes one place.

    Raises:
        ValueError: not YAML, or not such a value; says what is wrong, and where.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read")
    if _open_brackets(text) > MAX_BRACKETS:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    loader = None
    try:
        loader = yaml.SafeLoader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return _plain(loader.construct_document(node), "")
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep") from error
    except _UnfitError:
        raise
    except Exception as error:  # constructors of numbers and dates meet `!!int x` unprepared, each in its own way
        raise ValueError(f"not valid YAML: a value is not of the kind that its tag or form says ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _open_brackets(text: str) -> int:
    """The most brackets and braces that are open at once."""
    most = depth = 0
    for each in re.findall(r"[\[{}\]]", text):
        depth = depth + 1 if each in "[{" else max(0, depth - 1)
        most = max(most, depth)
    return most


class _UnfitError(ValueError):
    """Valid YAML, but not such a value."""


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], depth: int = 1) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out; `known` holds those of nodes that were met before."""
    if depth > MAX_DEPTH:
        raise _UnfitError(f"is nested more than {MAX_DEPTH} deep")
    if id(node) not in known:
        _refuse_twins(node)
        below = [_measure(each, known, depth + 1) for each in _children(node)]
        known[id(node)] = 1 + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
    size, height = known[id(node)]
    if size > MAX_VALUES or height > MAX_DEPTH:
        raise _UnfitError(f"holds more than {MAX_VALUES:,} values, or is nested more than {MAX_DEPTH} deep")
    return size, height


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refuse_twins(node: yaml.Node) -> None:
    """YAML forbids a name twice in a mapping; PyYAML would take the last one without a word."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise _UnfitError(f"has {key.value!r} twice in one group, in lines {lines[name]} and {line}; keep one")
            lines[name] = line


def _plain(value: Any, place: str) -> Any:
    """A copy without anything shared; refuses what is no plain value."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise _UnfitError(f"{place or 'the whole'}: has {key!r} as a name; write it in quotes")
        return {_whole(key, place): _plain(each, f"{place}.{key}" if place else key) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, f"{place}.{number}" if place else str(number)) for number, each in enumerate(value)]
    if isinstance(value, str):
        return _whole(value, place)
    if isinstance(value, float) and not math.isfinite(value):
        raise _UnfitError(f"{place or 'the whole'}: must be a finite number, not {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _UnfitError(f"{place or 'the whole'}: must be a number of at most 64 bits")
    if value is None or isinstance(value, bool | int | float):
        return value
    kind = type(value).__name__
    raise _UnfitError(f"{place or 'the whole'}: must be text, a number, a list or a group, not a {kind}; quote text")


def _whole(text: str, place: str) -> str:
    """Text that can be written to a file again."""
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise _UnfitError(f"{place or 'the whole'}: holds half of a surrogate pair; write the whole character")
    return text

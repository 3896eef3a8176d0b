"""Tables of the keys of configs, records and objectives, from their types, defaults and docstrings."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union

import yaml
from annotated_types import Ge, Gt, Interval, Le, Lt
from joint_names import written_out
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from t3d.objectives import OBJECTIVES

PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "keys and values", Any: "anything"}
BOUNDS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
REQUIRED = "**required**"
INHERITS = "see below"


@dataclasses.dataclass(frozen=True)
class Key:
    """One field: its name, what it may hold, what it holds unless set (in YAML), and what it is for."""

    name: str
    type: Any
    bounds: tuple[str, ...]
    default: str
    meaning: str


def class_named(path: str) -> type:
    """The class at an import path."""
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def fields_of(root: type) -> str:
    """A table of a class's fields, and below it one under a heading of its own for each group of keys inside it."""
    places = _places(root)
    return "\n\n".join(_section(owner, path, places) for owner, path in places.items())


def options_of_objectives() -> str:
    """The options of each objective of the registry."""
    return "\n\n".join(f"### {name} {{#objective.{name}}}\n\n{_table(kind, {})}" for name, kind in OBJECTIVES.items())


def _section(owner: type, path: str, places: dict[type, str]) -> str:
    if not path:
        return _table(owner, places)
    told = inspect.cleandoc(owner.__doc__ or "").split("\n\nAttributes:")[0]
    return f"## {path} {{#{path}}}\n\n{told}\n\n{_table(owner, places)}"


def _table(owner: type, places: dict[type, str]) -> str:
    keys = list(_keys(owner))
    if not keys:
        return "No options."
    rows = [
        f"| `{key.name}` | {_cell(_said(key.type, places), *key.bounds)} | {_default(key)} | {_cell(key.meaning)} |"
        for key in keys
    ]
    return "\n".join(["| key | holds | default | |", "|---|---|---|---|", *rows])


def _keys(owner: type) -> Iterator[Key]:
    meanings = _meanings(owner)
    if issubclass(owner, BaseModel):
        for name, field in owner.model_fields.items():
            value = field.get_default(call_default_factory=True)
            yield Key(name, field.annotation, _bounds(field.metadata), _value(value), meanings.get(name, ""))
    else:
        types = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            value = PydanticUndefined if field.default is dataclasses.MISSING else field.default
            yield Key(field.name, types[field.name], (), _value(value), meanings.get(field.name, ""))


def _meanings(owner: type) -> dict[str, str]:
    """Field -> what the `Attributes:` of its class, or of one that it inherits from, say of it."""
    meanings: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+):(\s.*(?:\n {5,}.*)*)", written_out(listed), re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


def _places(owner: type, path: str = "", places: dict[type, str] | None = None) -> dict[type, str]:
    """Each class of keys in `owner`, itself included, in order -> the path of keys at which it is first met."""
    places = {} if places is None else places
    places[owner] = path
    for key in _keys(owner):
        for inside in _classes(key.type):
            if inside not in places:
                _places(inside, f"{path}.{key.name}".strip("."), places)
    return places


def _classes(annotation: Any) -> Iterator[type]:
    """The classes of keys that a type mentions."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _classes(inner)


def _said(annotation: Any, places: dict[type, str]) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _cell(_said(inner[0], places), *_bounds(inner[1:]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_said(each, places) for each in inner if each is not NoneType)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} of {_said(inner[0], places)}"
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        return f"list of {_said(inner[0], places)}"
    if annotation in places:
        return f"[`{places[annotation]}`](#{places[annotation]})"
    return PLAIN[origin or annotation]


def _bounds(metadata: Any) -> tuple[str, ...]:
    """ "≥ 1" and the like."""
    found = []
    for each in metadata:
        for kind, name, sign in BOUNDS:
            if isinstance(each, kind | Interval) and getattr(each, name) is not None:
                found.append(f"{sign} {getattr(each, name)}")
    return tuple(found)


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return REQUIRED
    if isinstance(value, BaseModel):
        return INHERITS
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _default(key: Key) -> str:
    return key.default if key.default in (REQUIRED, INHERITS) else f"`{key.default}`"


def _cell(*texts: str) -> str:
    """Texts as one cell of a table."""
    return ", ".join(texts).replace("|", "\\|")

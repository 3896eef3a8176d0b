"""What the shell completes after an option: `t3d --install-completion` sets it up.

It answers at every press of a key, so it imports nothing slow: names in a registry are read from the registry's source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

Complete = Callable[[str], list[str]]
"""From what is typed of a word to what the word may be; of these the shell shows those that begin so."""

PACKAGE = Path(__file__).parent
RULES = ("engine/rules/__init__.py", "RULES")
TASKS = ("tasks/__init__.py", "TASKS")
SHAPES = ("bench/shapes.py", "SHAPES")
TABLES = ("evaluation/report/paper.py", "TABLES")
"""Registries: file in the package, name in the file."""
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
BACKENDS = ("continuous", "plain")
STYLES = ("auto", "chat", "plain", "raw")


def one_of(*names: str) -> Complete:
    """These names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def registered(file: str, registry: str, *others: str, separated: bool = False) -> Complete:
    """The names of a registry.

    Args:
        file: Python file, from the package's folder on.
        registry: the name that the file gives to a dict with its keys written out.
        others: names that are not in it.
        separated: several of them, with commas between.
    """

    def complete(incomplete: str) -> list[str]:
        before = incomplete[: incomplete.rfind(",") + 1] if separated else ""
        names = (*registry_names(file, registry), *others)
        return [before + name for name in names if (before + name).startswith(incomplete)]

    return complete


def registry_names(file: str, registry: str) -> list[str]:
    """The keys of a dict in a source file, without running the file."""
    import ast

    for node in ast.parse((PACKAGE / file).read_text()).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys)) if name == registry:
                return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    raise LookupError(f"{file} has no {registry}")


def models(incomplete: str) -> list[str]:
    """The models that come with the package; where none begins so, the shell completes a folder."""
    return one_of(*sorted(file.parent.name for file in (PACKAGE / "assets").glob("*/config.json")))(incomplete)


def recipe_keys(incomplete: str) -> list[str]:
    """The keys of a recipe, each with its "="."""
    from t3d.config import Recipe

    return [key for key in keys_of(Recipe) if key.startswith(incomplete)]


def study_keys(incomplete: str) -> list[str]:
    """The keys of a study file, each with its "="."""
    from t3d.config.study import StudyConfig

    return [key for key in keys_of(StudyConfig) if key.startswith(incomplete)]


def keys_of(config: type[BaseModel], group: str = "") -> Iterator[str]:
    """The keys of all single values of a config: `optim.lr=`; lists of groups, such as rounds, are left out."""
    from pydantic import BaseModel

    for name, field in config.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner and "tuple" not in str(field.annotation):
            yield from keys_of(inner[0], f"{group}{name}.")
        elif not inner:
            yield f"{group}{name}="

"""What a run's folder says of how a model was trained, fit to be read by anyone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.errors import RequestError
from t3d.training.run.folder import RECIPE_FILE, STARTS_FILE

_PRIVATE = ("compute", "device", "distributed", "out", "tracking")
"""Groups of a recipe that tell of the machine, not of the method."""
_MEASURING = ("evaluation", "stop_rounds")
"""Groups whose problems are not learned from."""
_ELSEWHERE = ("/", "~", "../")
"""How a path begins that may hold a user's name, or a machine's."""
_DATA_FILES = (".json", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a model came about.

    Attributes:
        recipe: of the run, with names in place of paths and without what concerns the machine.
        base: the model that training began with, as a hub id, else None.
        datasets: hub ids of what was learned from or rolled out on.
        method: one line.
        versions: of the software, at the last start.
        commit: of the source, if it ran from a checkout.
    """

    recipe: dict[str, Any]
    base: str | None
    datasets: tuple[str, ...]
    method: str
    versions: dict[str, str]
    commit: str | None


def read_origin(model: Path) -> Origin | None:
    """What the run says in whose folder a model's folder lies; None if it lies in no run's.

    Raises:
        RequestError: the run's files cannot be read.
    """
    run = model.resolve().parent
    if not (run / RECIPE_FILE).is_file():
        return None
    try:
        recipe = json.loads((run / RECIPE_FILE).read_text(encoding="utf-8"))
        lines = (run / STARTS_FILE).read_text(encoding="utf-8").splitlines() if (run / STARTS_FILE).is_file() else []
        start = json.loads(lines[-1]) if lines else {}
        cwd = Path(start.get("folder", "."))
        base = recipe["model"].get("source")
        learned = {name: group for name, group in recipe.items() if name not in _MEASURING}
        return Origin(
            recipe=_public({name: group for name, group in recipe.items() if name not in _PRIVATE}),
            base=base if is_hub_id(base, cwd) else None,
            datasets=tuple(dict.fromkeys(text.partition("@")[0] for text in _data_of(learned) if is_hub_id(text, cwd))),
            method=_method(recipe),
            versions=start.get("versions", {}),
            commit=start.get("commit"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{run / RECIPE_FILE}: cannot be read; move the model's folder out of the run's") from error


def _method(recipe: dict[str, Any]) -> str:
    """Such as "t3d, 200 optimizer steps of 256 examples, learning rate 1e-05, 4 rounds"."""
    optim, rounds, adapter = recipe["optim"], recipe.get("rounds"), recipe["model"].get("adapter")
    parts = [
        str(recipe["objective"]["name"]),
        f"{optim['steps']:,} optimizer steps of {optim['examples_per_step']} examples",
        f"learning rate {optim['lr']:g}",
    ]
    if rounds:
        parts[1] += " a round"
        parts.append(f"{len(rounds)} rounds")
    if adapter:
        parts.append(f"{adapter['type']} of rank {adapter['rank']}, merged")
    return ", ".join(parts)


def _data_of(fields: Any) -> Iterator[str]:
    """Values of the keys `data` and `prompts`, anywhere in a recipe."""
    if isinstance(fields, dict):
        for key, value in fields.items():
            if key in ("data", "prompts") and isinstance(value, str):
                yield value
            yield from _data_of(value)
    elif isinstance(fields, list):
        for each in fields:
            yield from _data_of(each)


def is_hub_id(text: str | None, cwd: Path = Path()) -> bool:
    """Whether a name is owner/name, or that at a revision, and no path: no data file's, and none that is there, seen
    from `cwd` or from here.
    """
    if text is None or not _HUB_ID.fullmatch(text) or text.endswith(_DATA_FILES):
        return False
    return not Path(text).exists() and not (cwd / text).exists()


def _public(fields: Any) -> Any:
    """Without keys that were left open; of a path that leads out of the working folder its last name alone, which says
    no user's and no machine's.
    """
    if isinstance(fields, dict):
        return {key: _public(value) for key, value in fields.items() if value is not None}
    if isinstance(fields, list):
        return [_public(each) for each in fields]
    return Path(fields).name if isinstance(fields, str) and fields.startswith(_ELSEWHERE) else fields

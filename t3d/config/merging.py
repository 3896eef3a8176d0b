"""Changes to fields: of a method to a study's recipe, of a round to a recipe, of a round to what all rounds share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with changes: groups key by key, all else whole; another objective leaves the old one's options behind.

    A group of a group is changed as a whole. The result shares nothing with `fields` or `changes`.
    """
    result = copy.deepcopy(dict(fields))
    for key, change in copy.deepcopy(dict(changes)).items():
        result[key] = {**result[key], **change} if _is_extended(key, result.get(key), change) else change
    return result


def _is_extended(key: str, before: Any, change: Any) -> bool:
    """Whether a change leaves the other keys of a group as they are."""
    if not (isinstance(before, Mapping) and isinstance(change, Mapping)):
        return False
    return key != "objective" or change.get("name", before.get("name")) == before.get("name")

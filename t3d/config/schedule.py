"""A schedule of rounds as it is written, and written out: repeats as often as they say, what all share in each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from t3d.config.merging import merged
from t3d.config.rounds import RolloutConfig, RoundConfig
from t3d.errors import RequestError

SHARED, REPEAT = "every_round", "repeat"
MAX_ROUNDS = 1000
"""Each becomes a recipe of its own, checked before anything runs."""


def write_out_repeats(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe fields in which an entry of `rounds` with `repeat: n` is there n times; `fields` stays as it is.

    Rounds are counted after this, in folders, overrides and messages alike.

    Raises:
        RequestError: a repeat that is no count, or more than `MAX_ROUNDS`.
    """
    rounds = fields.get("rounds")
    if not isinstance(rounds, list):
        return dict(fields)
    written_out: list[Any] = []
    for place, entry in enumerate(rounds):
        times, rest = 1, entry
        if isinstance(entry, Mapping) and REPEAT in entry:
            times, rest = entry[REPEAT], {key: value for key, value in entry.items() if key != REPEAT}
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise RequestError(f"rounds.{place}.{REPEAT}: must be a whole number from 1, not {times!r}")
        if len(written_out) + times > MAX_ROUNDS:
            raise RequestError(f"rounds.{place}: makes more than {MAX_ROUNDS:,} rounds; give fewer")
        written_out += [copy.deepcopy(rest) for _ in range(times)]
    return {**fields, "rounds": written_out}


def write_out_shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe fields without `every_round`: it is merged, group by group, under each entry of `rounds`, which wins.

    `every_round.rollout` is also under `stop_rounds.rollout`, but for who answers: that is each round's student.

    Raises:
        RequestError: `every_round` is no group of a round's keys, or there are no rounds.
    """
    rest = {key: value for key, value in fields.items() if key != SHARED}
    if fields.get(SHARED) is None:
        return rest
    shared, rounds = _checked(fields[SHARED]), fields.get("rounds")
    if not rounds:
        raise RequestError(f"{SHARED}: is what rounds share, and there are no rounds; give rounds, or leave it out")
    if isinstance(rounds, list | tuple):
        rest["rounds"] = [merged(shared, entry) if isinstance(entry, Mapping) else entry for entry in rounds]
    stop = fields.get("stop_rounds")
    if isinstance(stop, Mapping) and isinstance(stop.get("rollout"), Mapping):
        asked = {key: value for key, value in shared.get("rollout", {}).items() if key not in ("by", "completed_by")}
        rest["stop_rounds"] = {**stop, "rollout": {**asked, **stop["rollout"]}}
    return rest


def _checked(shared: Any) -> Mapping[str, Any]:
    """`every_round` itself, whose keys a round knows. What is wrong with values shows in the rounds."""
    if not isinstance(shared, Mapping):
        raise RequestError(f"{SHARED}: must be a group of keys, not a single value")
    rollout = shared.get("rollout", {})
    if not isinstance(rollout, Mapping):
        raise RequestError(f"{SHARED}.rollout: must be a group of keys, not a single value")
    unknown = [key for key in shared if key not in RoundConfig.model_fields]
    unknown += [f"rollout.{key}" for key in rollout if key not in RolloutConfig.model_fields]
    if unknown:
        raise RequestError(f"unknown key {SHARED}.{unknown[0]}: remove it or check its spelling")
    return shared

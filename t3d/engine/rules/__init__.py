"""The rules that decide which masked positions a denoising step reveals. A new one: a file, and a line here."""

from __future__ import annotations

from t3d.engine.rules.common import Rule
from t3d.engine.rules.entropy_bounded import entropy_bounded
from t3d.engine.rules.low_confidence_dynamic import low_confidence_dynamic
from t3d.engine.rules.low_confidence_static import low_confidence_static
from t3d.engine.rules.sequential import sequential

RULES: dict[str, Rule] = {
    "sequential": sequential,
    "low_confidence_static": low_confidence_static,
    "low_confidence_dynamic": low_confidence_dynamic,
    "entropy_bounded": entropy_bounded,
}
"""Name in `Decoding.rule` -> the rule."""


def rule_number(name: str) -> int:
    """The place of a rule in `RULES`, which is how state tensors name it; a rule registered later has a later one."""
    return list(RULES).index(name)


__all__ = ["RULES", "Rule", "rule_number"]

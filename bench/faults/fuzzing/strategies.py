"""Hypothesis' way to cases: near-valid ones by the targets' own faults, and values of JSON's shape in their place."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fuzzing.targets import Case, Target

NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(2**62, 2**200), st.integers(-(2**200), -(2**62)))
TEXTS = st.one_of(st.text(max_size=20), st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl"]), max_size=5))
SHAPED = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
"""Values of JSON's (and YAML's) shape, lone surrogates and numbers that are none included."""


class DrawnByHypothesis:
    """Decisions that hypothesis can shrink."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def below(self, limit: int) -> int:
        """As `Draw`."""
        return self._draw(st.integers(0, limit - 1))


@st.composite
def near_valid(draw: Any, target: Target) -> Case:
    """A valid case with some faults."""
    return target.make(DrawnByHypothesis(draw))


def cases_of(target: Target) -> st.SearchStrategy[Case]:
    """Cases of a target, of both kinds."""
    if target.shaped(None) is None:
        return near_valid(target)
    return st.one_of(near_valid(target), near_valid(target), SHAPED.map(target.shaped))

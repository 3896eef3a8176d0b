"""Rows to train on: random tokens of given lengths, in random reveal orders, since speed depends on lengths only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t3d.bench.shapes import random_ids
from t3d.corruption import TrainingRow
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shortest and longest prompt and response, in tokens; all lengths between are equally frequent."""

    prompt: tuple[int, int]
    response: tuple[int, int]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response together."""
        return self.prompt[1] + self.response[1]


LENGTHS: Mapping[str, Lengths] = {
    "real": Lengths(prompt=(40, 160), response=(100, 500)),
    "full": Lengths(prompt=(512, 512), response=(1024, 1024)),
}
"""Name on the command line -> lengths: 100 + 300 tokens on average, or 512 + 1,024 each.

The public code was measured at the same averages; it pads every row to the latter.
"""


def get_lengths(name: str) -> Lengths:
    """The lengths of a name.

    Raises:
        RequestError: no such lengths.
    """
    if name not in LENGTHS:
        raise RequestError(f"lengths {name!r} are unknown: use {' or '.join(LENGTHS)}")
    return LENGTHS[name]


def random_rows(
    lengths: Lengths, count: int, config: BlockDiffusionConfig, seed: int = 0, number: int = 0
) -> list[TrainingRow]:
    """`count` rows whose lengths are spread evenly over their range, so that their mean is the middle of it.

    Another `number` gives other rows: prompts meet responses of other lengths.
    """
    rng = np.random.default_rng([seed, number])
    prompts, responses = (_spread(*each, count, rng) for each in (lengths.prompt, lengths.response))
    return [
        TrainingRow(
            row_id=f"{number}/{index}",
            prompt_ids=random_ids(config, prompt, rng),
            response_ids=random_ids(config, response, rng),
            reveal_step=1 + rng.permutation(response),
        )
        for index, (prompt, response) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True))
    ]


def _spread(low: int, high: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [count] in a random order: from `low` to `high` in even steps; one alone is the middle."""
    if count == 1:
        return np.asarray([(low + high) // 2])
    place = np.arange(count)
    even = (low * (count - 1 - place) + high * place) / (count - 1)  # exact at halves, so that rounding is even-handed
    return rng.permutation(np.rint(even).astype(np.int64))

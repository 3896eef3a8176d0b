"""Which training step to measure, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t3d.bench.lengths import get_lengths
from t3d.bench.shapes import shape_config
from t3d.config import Recipe, make_recipe
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig
from t3d.objectives import build_objective
from t3d.training.requirements import check_training

NOWHERE = "(nothing is read or written)"
"""Where a recipe names its data and its folder: rows and weights are made up here."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """One measurement. What is None is left to the recipe, as it is in training.

    Attributes:
        shape: of the model, a name in `SHAPES`.
        lengths: of prompts and responses, a name in `LENGTHS`.
        objective: a name in `OBJECTIVES`, with its own defaults.
        examples: of an optimizer step.
        steps: timed.
        warm_up: steps before them, in which kernels are compiled and the optimizer makes its state.
        block_size: of the training grid; None takes the model's.
        tokens_per_batch, precision, optimizer, quantize: as in a recipe.
        reference, attention, compile, checkpoint_layers: as in a recipe too.
        adapter: "lora" or "dora"; None trains all weights.
        rank: of the adapter.
        strategy, gradients: of several processes, as in a recipe's `distributed`.
        memory_gib: that the process may hold on the device; more is an error. None is all there is.
        seed: of weights, rows and noise.
        device: "cpu" or "cuda"; None is CUDA where there is one.
    """

    shape: str
    lengths: str
    objective: str = "t3d"
    examples: int = 256
    steps: int = 3
    warm_up: int = 2
    block_size: int | None = None
    tokens_per_batch: int | None = None
    precision: str | None = None
    optimizer: str | None = None
    adapter: str | None = None
    rank: int | None = None
    quantize: str | None = None
    reference: str | None = None
    attention: str | None = None
    compile: bool | None = None
    checkpoint_layers: int | None = None
    strategy: str | None = None
    gradients: str | None = None
    memory_gib: float | None = None
    seed: int = 0
    device: str | None = None

    @property
    def name(self) -> str:
        """Of the measurement: its shape and lengths, and what was chosen beside them."""
        chosen = [None if self.objective == "t3d" else self.objective, self.precision, self.optimizer, self.adapter]
        chosen += [self.quantize, self.reference, None if self.memory_gib is None else f"{self.memory_gib:g}gib"]
        return "-".join(["train", self.shape, self.lengths, *(each for each in chosen if each is not None)])

    def check(self) -> tuple[BlockDiffusionConfig, Recipe]:
        """The model's config and the recipe of the step, if all of the plan can be run.

        Raises:
            RequestError: it cannot.
        """
        config, lengths = shape_config(self.shape), get_lengths(self.lengths)
        if lengths.longest > config.max_position_embeddings:
            raise RequestError(
                f"lengths {self.lengths}: rows of up to {lengths.longest} tokens do not fit the "
                f"{config.max_position_embeddings} positions of {self.shape}"
            )
        numbers = {"examples": (self.examples, 1), "steps": (self.steps, 1), "warm-up": (self.warm_up, 0)}
        for name, (number, least) in numbers.items():
            if number < least:
                raise RequestError(f"{name} must be at least {least}, not {number}")
        if self.memory_gib is not None and not (math.isfinite(self.memory_gib) and self.memory_gib > 0):
            raise RequestError(f"memory-gib must be more than 0, not {self.memory_gib}")
        if self.rank is not None and self.adapter is None:
            raise RequestError("rank is an adapter's: give --adapter lora or --adapter dora too")
        build_objective(self.objective)
        recipe = make_recipe(self._fields(), name="bench train")
        check_training(recipe)
        return config, recipe

    def _fields(self) -> dict[str, Any]:
        adapter = {"type": self.adapter, **_given({"rank": self.rank})} if self.adapter else None
        return {
            "model": {"source": self.shape, "adapter": adapter, "quantize": self.quantize},
            "objective": {"name": self.objective},
            "data": {"trajectories": NOWHERE},
            "optim": {
                "steps": self.warm_up + self.steps,
                "examples_per_step": self.examples,
                **_given({"optimizer": self.optimizer}),
            },
            "corruption": {"block_size": self.block_size},
            "batch": _given({"tokens_per_batch": self.tokens_per_batch}),
            "reference": {"form": self.reference},
            "compute": {
                "attention": self.attention,
                "compile": self.compile,
                "checkpoint_layers": self.checkpoint_layers,
            },
            "distributed": _given({"strategy": self.strategy, "gradients": self.gradients}),
            "precision": self.precision,
            "seed": self.seed,
            "device": self.device,
            "out": NOWHERE,
        }


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None}

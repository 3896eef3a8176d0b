"""Typed recipes. Unknown fields are errors; every message is one line that names the field and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from t3d.config.base import Config, first_fault
from t3d.config.groups import (
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    CorruptionConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ReferenceConfig,
    TrackingConfig,
)
from t3d.config.prompting import PromptConfig
from t3d.config.rounds import RoundConfig
from t3d.errors import RequestError

EXPECTED = {
    "dict_type": "must be a group of keys, not a single value",
    "model_type": "must be a group of keys, not a single value",
    "tuple_type": "must be a list, such as [a, b]",
    "string_type": "must be text; quote what YAML takes for something else (2024, off, null)",
}
"""Kind of a validation error -> what a recipe should hold there, in the words of YAML."""


class Recipe(Config):
    """A whole training run; `out` receives model, checkpoints, metrics and this recipe.

    It learns from `data`; or, in `rounds`, from what its own models roll out on the way.

    `precision` says what is computed in, and held: fp32; tf32 (fp32 held, tensor cores round products' inputs); bf16
    (computed in bfloat16, weights and AdamW's moments held in fp32); bf16_pure (all held in bfloat16, the weights
    rounded stochastically: half the memory). None is bf16 on CUDA, fp32 on the CPU.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig | None = None
    rounds: tuple[RoundConfig, ...] = ()
    optim: OptimConfig
    corruption: CorruptionConfig = CorruptionConfig()
    batch: BatchConfig = BatchConfig()
    reference: ReferenceConfig = ReferenceConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig | None = None
    prompt: PromptConfig = PromptConfig()
    tracking: TrackingConfig = TrackingConfig()
    precision: Literal["fp32", "tf32", "bf16", "bf16_pure"] | None = None
    log_every: int = Field(10, ge=1)
    seed: int = Field(0, ge=0, lt=2**62)
    device: Literal["cpu", "cuda"] | None = None
    out: str

    @model_validator(mode="after")
    def _one_origin_of_data(self) -> Self:
        if (self.data is None) == (not self.rounds):
            raise ValueError("give either data (what to learn from) or rounds (roll out, then learn from that)")
        return self

    def seed_of_round(self, number: int) -> int:
        """What is drawn at random in round `number` (from 1) hangs on this."""
        return self.seed + number

    def of_round(self, number: int, *, source: str, trajectories: str, out: str) -> Recipe:
        """The recipe of the training in one round.

        Args:
            number: of the round, from 1.
            source: the model that it starts from.
            trajectories: folder that it learns from.
            out: its run folder.

        Raises:
            RequestError: the round's changes are none that a recipe knows.
        """
        chosen = self.rounds[number - 1]
        fields = chosen.applied_to(self.model_dump(exclude={"rounds"}))
        fields["model"] = {**fields["model"], "source": source, "init": None}
        fields["data"] = {"trajectories": trajectories, "keep_unfinished": chosen.keep_unfinished}
        fields["tracking"]["name"] = f"{self.tracking.name or Path(self.out).name}-round-{number}"
        fields |= {"seed": self.seed_of_round(number), "out": out}
        return make_recipe(fields, name=f"rounds.{number - 1}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key.sub=value` overrides (values in YAML).

    Raises:
        RequestError: no such file, not YAML, unknown or wrong field.
    """
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"recipe {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise RequestError(f"recipe {path}: must be a mapping of keys such as model, objective, data, optim, out")
    fields = _unshared(fields)
    for override in overrides:
        apply_override(fields, override)
    return make_recipe(fields, name=f"recipe {path}")


def make_recipe(fields: dict[str, Any], name: str = "recipe") -> Recipe:
    """A recipe from plain fields; the first wrong one is named in one line.

    Raises:
        RequestError: unknown or wrong field.
    """
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "extra_forbidden":
            raise RequestError(f"{name}: unknown key {fault.field}: remove it or check its spelling") from error
        fault = replace(fault, message=EXPECTED.get(fault.kind, fault.message))
        raise RequestError(f"{name}: {fault}") from error
    for number in range(1, len(recipe.rounds) + 1):
        try:
            recipe.of_round(number, source=".", trajectories=".", out=".")
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from error
    return recipe


def apply_override(fields: dict[str, Any], override: str) -> None:
    """Set one field in place, as `optim.lr=1e-4` or `rounds.0.optim.steps=10` says; the value is YAML.

    Groups that are not there are made; entries of a list are not.

    Raises:
        RequestError: not of this form, or no such place.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RequestError(f"override {override!r}: write key=value, for example optim.lr=1e-4")
    *parents, last = path.split(".")
    try:
        value, group, inside = yaml.safe_load(text), fields, ""
        for name in parents:
            key = _key_in(group, name, inside)
            group = group.setdefault(key, {}) if isinstance(group, dict) else group[key]
            inside = name
        group[_key_in(group, last, inside)] = value
    except yaml.YAMLError as error:
        raise RequestError(f"override {override!r}: its value is not valid YAML") from error
    except RequestError as error:
        raise RequestError(f"override {override!r}: {error}") from error


def _key_in(group: Any, name: str, inside: str) -> Any:
    """What `name` stands for in the mapping or list `group`, which is called `inside`."""
    if isinstance(group, dict):
        return name
    if not isinstance(group, list):
        raise RequestError(f"{inside} is not a group of keys")
    if not name.isdecimal() or int(name) >= len(group):
        raise RequestError(f"{inside} has {len(group)} entries, counted from 0, and none is {name}")
    return int(name)


def _unshared(value: Any) -> Any:
    """A copy in which what YAML aliases repeat is there several times: an override then changes one place alone."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value

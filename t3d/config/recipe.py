"""Typed recipes. Unknown fields are errors; every message is one line that names the field and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from t3d.config.base import Config
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
from t3d.errors import RequestError


class Recipe(Config):
    """A whole training run; `out` receives model, checkpoints, metrics and this recipe.

    `precision` says what is computed in, and held: fp32; tf32 (fp32 held, tensor cores round products' inputs); bf16
    (computed in bfloat16, weights and AdamW's moments held in fp32); bf16_pure (all held in bfloat16, the weights
    rounded stochastically: half the memory; needs torchao). None is bf16 on CUDA, fp32 on the CPU.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optim: OptimConfig
    corruption: CorruptionConfig = CorruptionConfig()
    batch: BatchConfig = BatchConfig()
    reference: ReferenceConfig = ReferenceConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig | None = None
    tracking: TrackingConfig = TrackingConfig()
    precision: Literal["fp32", "tf32", "bf16", "bf16_pure"] | None = None
    log_every: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)
    device: Literal["cpu", "cuda"] | None = None
    out: str


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
    for override in overrides:
        _apply_override(fields, override)
    return make_recipe(fields, name=f"recipe {path}")


def make_recipe(fields: dict[str, Any], name: str = "recipe") -> Recipe:
    """A recipe from plain fields; the first wrong one is named in one line.

    Raises:
        RequestError: unknown or wrong field.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "recipe"
        if first["type"] == "extra_forbidden":
            raise RequestError(f"{name}: unknown key {field}: remove it or check its spelling") from error
        raise RequestError(f"{name}: {field}: {first['msg']}") from error


def _apply_override(fields: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r}: write key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise RequestError(f"override {override!r}: {parent} is not a group of keys")
    try:
        fields[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"override {override!r}: its value is not valid YAML") from error

"""Typed recipes. Unknown fields are errors; every message is one line that names the field and the cure.

This module imports nothing of ours but the error types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t3d.errors import RequestError


class Config(BaseModel):
    """Base of all configs: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CorruptionConfig(Config):
    """How tokens are hidden (design section 4).

    Attributes:
        block_size: B of the training grid; None takes the model's own.
        ratios: hidden shares r to draw from, in (0, 1].
        ratio_power: r is drawn with probability proportional to r ** ratio_power.
        random_token_share: share of the hidden tokens that show a random token in place of [MASK].
        mask_order: which tokens of a block are hidden: `trajectory` the last revealed (a state the teacher was in),
            `reverse` the first revealed (the public code), `random` any.
    """

    block_size: int | None = Field(None, ge=1)
    ratios: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    ratio_power: float = 8.0
    random_token_share: float = Field(0.1, ge=0, le=1)
    mask_order: Literal["trajectory", "reverse", "random"] = "trajectory"

    @model_validator(mode="after")
    def _ratios_in_range(self) -> Self:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError("ratios must be one or more numbers in (0, 1]")
        return self


class ModelConfig(Config):
    """Where the model comes from: `source`, or random weights of the shapes in `init`.

    Attributes:
        source: folder, hub id or built-in name.
        init: fields of the family's config, for random weights; the tokenizer fills in vocabulary and special ids.
        tokenizer: folder, hub id or built-in name of the tokenizer; None takes the one beside the model.
    """

    source: str | None = None
    init: dict[str, Any] | None = None
    tokenizer: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.init is None):
            raise ValueError("give either source (a model) or init (shapes for random weights)")
        if self.init is not None and self.tokenizer is None:
            raise ValueError("init needs tokenizer: a model folder, or story-tokenizer")
        return self


class DataConfig(Config):
    """What to learn from: a trajectory folder, or a task's worked answers.

    Attributes:
        trajectories: folder or file that `t3d rollout` wrote.
        task: a name in `t3d.tasks.TASKS`, in place of trajectories.
        split, count, seed: which of the task's documents.
        keep_unfinished: also learn from answers that ended by length.
    """

    trajectories: str | None = None
    task: str | None = None
    split: str = "train"
    count: int = Field(100_000, ge=1)
    seed: int = Field(0, ge=0)
    keep_unfinished: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.trajectories is None) == (self.task is None):
            raise ValueError("give either trajectories (a folder) or task (a built-in one)")
        return self


class OptimConfig(Config):
    """AdamW with warm-up and cosine decay.

    Attributes:
        steps: optimizer steps.
        examples_per_step: over all processes; every loss is a mean over them.
        lr: peak learning rate.
        betas, weight_decay: of AdamW; vectors (norm weights) do not decay.
        clip_norm: of the gradient.
        warmup_steps: from 0 to `lr`.
        final_lr_share: the cosine ends at this share of `lr`.
    """

    steps: int = Field(..., ge=1)
    examples_per_step: int = Field(256, ge=1)
    lr: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(20, ge=0)
    final_lr_share: float = Field(0.1, ge=0, le=1)


class BatchConfig(Config):
    """How a step's examples are cut into forward passes; changes speed and memory, never the result.

    Attributes:
        tokens_per_batch: tokens of one forward pass on one device, clean and noisy.
        row_tokens: tokens of one packed row; None makes rows as long as the longest example of the batch.
        num_workers: processes that prepare batches; 0 does it in the training process.
    """

    tokens_per_batch: int = Field(16_384, ge=1)
    row_tokens: int | None = Field(None, ge=1)
    num_workers: int = Field(0, ge=0)


class ReferenceConfig(Config):
    """The frozen model inside DDO.

    Attributes:
        refresh_every: optimizer steps after which the student replaces it; 0 keeps the teacher throughout.
        temperature: of the fake token; 0 takes the reference's argmax.
    """

    refresh_every: int = Field(10, ge=0)
    temperature: float = Field(0.0, ge=0)


class CheckpointConfig(Config):
    """What is kept on the way.

    Attributes:
        every_steps: 0 writes none but the final model.
        keep: newest checkpoints kept.
    """

    every_steps: int = Field(0, ge=0)
    keep: int = Field(2, ge=1)


class ObjectiveConfig(BaseModel):
    """The objective's name; the other keys are its options, checked by the objective itself."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Recipe(Config):
    """A whole training run; `out` receives model, checkpoints, metrics and this recipe."""

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optim: OptimConfig
    corruption: CorruptionConfig = CorruptionConfig()
    batch: BatchConfig = BatchConfig()
    reference: ReferenceConfig = ReferenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
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

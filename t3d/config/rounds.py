"""Rounds: who rolls out, what is kept of it, and what the recipe's training changes for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from t3d.config.base import Config


class RolloutConfig(Config):
    """Answers that a round learns from; the keys mean what the options of `t3d rollout` mean.

    Attributes:
        by: the current student, or the teacher: the model that the recipe names. In round 1 they are the same.
        task: a name in `t3d.tasks.TASKS`, with its `split` and the `data` (file or hub id) that its problems come from,
            None being its own source; or
        prompts: a file of prompts or questions, as the task `jsonl` reads it.
        count: the first so many; None is all, which an endless task refuses.
        samples: answers a prompt.
        seed: of the task's prompts and of decoding; None is the recipe's seed plus the number of the round (from 1),
            so that every round sees fresh prompts.
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_new_tokens:
            decoding, as in `t3d.types.Decoding`; steps_per_block None is full-step.
        dtype: that decoding computes in; None takes what training computes in.
        batch_size, backend, memory_gib: of the engine; None leaves them to it.
    """

    by: Literal["teacher", "student"] = "student"
    task: str | None = None
    data: str | None = None
    split: str = "train"
    prompts: str | None = None
    count: int | None = Field(None, ge=1)
    samples: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0)
    block_size: int | None = Field(None, ge=1)
    steps_per_block: int | None = Field(None, ge=1)
    rule: str = "low_confidence_static"
    temperature: float = Field(0.1, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    threshold: float = Field(0.9, gt=0, le=1)
    entropy_bound: float = Field(0.5, ge=0)
    max_new_tokens: int = Field(512, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_size: int | None = Field(None, ge=1)
    backend: Literal["continuous", "plain"] | None = None
    memory_gib: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if (self.task is None) == (self.prompts is None):
            raise ValueError("give either task (such as gsm8k) or prompts (a file)")
        if self.data is not None and self.task is None:
            raise ValueError("data is where a task's problems come from: give task too")
        return self


class RoundConfig(Config):
    """One round: a model rolls out, and a student learns from the answers.

    `objective`, `optim`, `corruption`, `reference` and `batch` hold changes to the recipe's groups of these names:
    `optim: {steps: 100}` leaves all else in optim as it is. Another objective starts without the recipe's options.

    Attributes:
        rollout: who answers what, and how.
        keep: all answers, or those that agree with the same model's full-step answer.
        keep_unfinished: also learn from answers that ended by length.
    """

    rollout: RolloutConfig
    keep: Literal["all", "agreeing"] = "all"
    keep_unfinished: bool = False
    objective: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    corruption: dict[str, Any] = Field(default_factory=dict)
    reference: dict[str, Any] = Field(default_factory=dict)
    batch: dict[str, Any] = Field(default_factory=dict)

    def applied_to(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's fields with this round's changes, unchecked; `fields` stays as it is."""
        changed = ("objective", "optim", "corruption", "reference", "batch")
        merged = {name: {**fields[name], **getattr(self, name)} for name in changed}
        if self.objective.get("name", fields["objective"]["name"]) != fields["objective"]["name"]:
            merged["objective"] = self.objective
        return {**fields, **merged}

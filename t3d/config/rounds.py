"""Rounds: who rolls out, what is kept of it, and what the recipe's training changes for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from t3d.config.base import Config
from t3d.config.merging import merged


class RolloutConfig(Config):
    """Answers that a round learns from; the keys mean what the options of `t3d rollout` mean.

    Attributes:
        by: the current student, or the teacher: the model that the recipe names. In round 1 they are the same.
        task: a name in `t3d.tasks.TASKS`, whose questions are answered; or
        data: file or hub id that the task's problems come from; None takes the task's own source.
        split: of the task.
        prompts: a file of prompts or questions, as the task `jsonl` reads it.
        count: so many of them; None is all, which an endless task refuses.
        shuffle: take the `count` problems from an order drawn by `seed`, so that rounds see different ones; false takes
            the first in the source's order. An endless task draws its problems by `seed` anyway.
        samples: answers a prompt.
        seed: of the choice of problems and of decoding; None is the recipe's seed plus the number of the round (from
            1), so that every round sees fresh prompts.
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_new_tokens:
            decoding, as in `t3d.types.Decoding`; steps_per_block None is full-step.
        dtype: that decoding computes in; None takes what training computes in.
        batch_size, backend, memory_gib: of the engine; None leaves them to it.
        completed_by: teacher has each answer cut at a block's end, drawn at random, and completed from there by the
            teacher at full-step: learned from is the teacher's part, in a state that the student got into.
    """

    by: Literal["teacher", "student"] = "student"
    task: str | None = None
    data: str | None = None
    split: str = "train"
    prompts: str | None = None
    count: int | None = Field(None, ge=1)
    shuffle: bool = True
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
    completed_by: Literal["teacher"] | None = None

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if (self.task is None) == (self.prompts is None):
            raise ValueError("give either task (such as gsm8k) or prompts (a file)")
        if self.data is not None and self.task is None:
            raise ValueError("data is where a task's problems come from: give task too")
        return self

    @model_validator(mode="after")
    def _student_is_completed(self) -> Self:
        if self.completed_by is not None and self.by == "teacher":
            raise ValueError("completed_by: the teacher completes what the student began; leave out by: teacher")
        return self


class RoundConfig(Config):
    """One round: a model rolls out, and a student learns from the answers.

    `objective`, `optim`, `corruption`, `reference` and `batch` hold changes to the recipe's groups of these names:
    `optim: {steps: 100}` leaves all else in optim as it is. Another objective starts without the recipe's options.

    Attributes:
        rollout: who answers what, and how.
        keep: all answers; those that agree with the full-step answer; or those that are identical to it, character for
            character. No labels are looked at.
        agree_with: whose full-step answer that is: the same model's own, or the teacher's, against drift.
        keep_unfinished: also learn from answers that ended by length.
        teacher_share: this share of the training examples are rows that round 1 learned from, whose answers are the
            first teacher's: against drift.
        optimizer: fresh, or AdamW's moments carried over from the round before, where there is one; the schedule of
            learning rates starts anew.
        student: which of its students the round leaves to the next one: the last, or the best by `evaluation`.
        objective, optim, corruption, reference, batch: changes to the recipe's groups of these names.
    """

    rollout: RolloutConfig
    keep: Literal["all", "agreeing", "identical"] = "all"
    agree_with: Literal["self", "teacher"] = "self"
    keep_unfinished: bool = False
    teacher_share: float = Field(0.0, ge=0, lt=1)
    optimizer: Literal["fresh", "carried"] = "fresh"
    student: Literal["last", "best"] = "last"
    objective: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    corruption: dict[str, Any] = Field(default_factory=dict)
    reference: dict[str, Any] = Field(default_factory=dict)
    batch: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_is_compared(self) -> Self:
        if self.agree_with == "teacher" and self.keep == "all":
            raise ValueError("agree_with teacher: nothing is compared with keep: all; set keep: agreeing")
        return self

    @model_validator(mode="after")
    def _completed_answers_are_compared(self) -> Self:
        if self.keep == "identical" and self.rollout.completed_by is not None:
            raise ValueError("keep identical: nothing is identical to a completed answer; set keep: agreeing, or all")
        return self

    def applied_to(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's fields with this round's changes, unchecked; `fields` stays as it is."""
        groups = ("objective", "optim", "corruption", "reference", "batch")
        return merged(fields, {name: getattr(self, name) for name in groups})


class StopRoundsConfig(Config):
    """Each round's student is judged; rounds that bring nothing better end the run.

    Attributes:
        by: agreement: the share of answers of `rollout` that agree with the same student's full-step ones, which needs
            no labels; or accuracy: what the recipe's `evaluation` finds at `best_by`.
        patience: rounds in a row without a better student after which the run ends; 0 runs them all.
        publish: whether `model` becomes the best round's student (of equals the earliest) or the last one's.
        rollout: what agreement is measured on, the same in each round: held-out prompts. Its seed is the recipe's.
    """

    by: Literal["agreement", "accuracy"]
    patience: int = Field(..., ge=0)
    publish: Literal["best", "last"] = "best"
    rollout: RolloutConfig | None = None

    @model_validator(mode="after")
    def _students_answer(self) -> Self:
        if (self.rollout is None) == (self.by == "agreement"):
            raise ValueError("give rollout (held-out prompts) with by: agreement, and only there")
        if self.rollout is not None and (self.rollout.by == "teacher" or self.rollout.completed_by is not None):
            raise ValueError("rollout: each round's student is judged; leave by and completed_by out")
        return self

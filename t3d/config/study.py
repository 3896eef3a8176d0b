"""Typed studies: methods side by side under the same conditions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from t3d.config.base import Config
from t3d.config.merging import merged
from t3d.config.recipe import checked, load_fields
from t3d.config.rounds import RolloutConfig

TEACHER = "teacher"
"""The teacher's name in tables and claims."""
EQUAL_TIME = "{} (equal time)"
"""The name of a method that was also trained for as long as another, in tables and claims."""
OWNED = ("out", "seed")
"""Keys of a recipe that the study fills in for each cell."""


class MethodConfig(BaseModel):
    """A method: changes to the study's `recipe`, group by group; the keys beside those here are a recipe's.

    Another objective starts without the options of the recipe's. A method without `rounds` learns from the shared
    rollouts, of which `data: {keep_unfinished: true}` takes all; with `data: {task: ...}` it learns from worked answers
    to the problems that were rolled out.

    Attributes:
        group: heading under which tables show it.
        about: what it is, in a sentence.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    group: str = ""
    about: str = ""

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes in the study's recipe."""
        return dict(self.model_extra or {})


class AblationConfig(MethodConfig):
    """One change to a method, at the learning rate that was chosen for it; tested by the static rule alone.

    Attributes:
        of: the method's name.
    """

    of: str


class TuningConfig(Config):
    """What decides the learning rate: the mean accuracy over `tokens_per_step` on problems that no table shows.

    Attributes:
        split: of the test's benchmark.
        limit: problems.
        tokens_per_step: settings.
    """

    split: str = "validation"
    limit: int = Field(500, ge=1)
    tokens_per_step: tuple[int, ...] = Field((1, 2, 4), min_length=1)


class TestingConfig(Config):
    """What tables show.

    Attributes:
        benchmark, data, split: a name in `t3d.evaluation.BENCHMARKS`, where its problems come from, and which of them;
            None takes the benchmark's own.
        limit: problems; None takes the benchmark's.
        block_size: of decoding; None takes the teacher's.
        tokens_per_step, thresholds: settings of the static and of the dynamic rule.
        max_new_tokens: longest answer; None takes the benchmark's.
        dtype: that decoding computes in; None takes that of the weights, on the CPU float32.
    """

    benchmark: str = "story"
    data: str | None = None
    split: str | None = None
    limit: int | None = Field(1000, ge=1)
    block_size: int | None = Field(None, ge=1)
    tokens_per_step: tuple[int, ...] = Field((1, 2, 4), min_length=1)
    thresholds: tuple[float, ...] = ()
    max_new_tokens: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


class EqualTimeConfig(Config):
    """Methods that are trained once more, for as long as another took.

    Attributes:
        to: the method whose time is given, rollouts and training.
        methods: that get it, none of them with rounds; None is every other one without.
    """

    to: str
    methods: tuple[str, ...] | None = None


class ClaimConfig(Config):
    """A sentence that the study confirms or does not: one row is better than another.

    Attributes:
        text: the sentence.
        better, than: rows: methods, ablations, `teacher`, or a method's name with " (equal time)".
        at: tokens per step; None is every one of the test's.
        by: percentage points that the difference must exceed; below 0: that it may lack.
    """

    text: str
    better: str
    than: str
    at: tuple[int, ...] | None = None
    by: float = Field(0.0, ge=-100, le=100)


class StudyConfig(Config):
    """A study: every method from the same teacher, with the same rollouts, steps and tuning.

    Attributes:
        teacher: folder, hub id or built-in name.
        out: folder of the study.
        seeds: each gives rollouts of its own, shared by all methods, and a training of each method. A run of rounds
            uses the next few seeds too, so leave room between them.
        learning_rates: each method is tuned over them with the first seed.
        rollout: as in a recipe's rounds; `by` is the teacher.
        recipe: fields of a recipe that all methods share.
        tune, test: how students are measured.
        equal_time: also compare at equal time.
        ablation_seeds: ablations take the first so many seeds; None is all.
        keep_models: weights that stay on disk when they were measured: of all cells, of those with a chosen learning
            rate, or none.
        methods, ablations: by name.
        claims: that the report judges.
    """

    teacher: str
    out: str
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 100, 200), min_length=1)
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    rollout: RolloutConfig
    recipe: dict[str, Any]
    tune: TuningConfig = TuningConfig()
    test: TestingConfig = TestingConfig()
    equal_time: EqualTimeConfig | None = None
    ablation_seeds: int | None = Field(None, ge=1)
    keep_models: Literal["all", "chosen", "none"] = "chosen"
    methods: dict[str, MethodConfig] = Field(min_length=1)
    ablations: dict[str, AblationConfig] = Field(default_factory=dict)
    claims: tuple[ClaimConfig, ...] = ()

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        _require_once("seeds", self.seeds)
        _require_once("learning_rates", [f"{lr:g}" for lr in self.learning_rates])  # as folders call them
        if nameless := [name for name in self.variants if not folder_name(name)]:
            raise ValueError(f"methods and ablations: {nameless[0]!r} cannot name a folder; give it a letter or digit")
        rows = (TEACHER, *self.methods, *self.ablations, *map(EQUAL_TIME.format, self.methods))
        _require_once("names of rows (methods, ablations, the teacher)", [folder_name(name) for name in rows])
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for place, name in self._mentions():
            if name not in self.methods:
                raise ValueError(f"{place} {name!r} is no method: use one of {', '.join(self.methods)}")
        for name in self.equal_time_methods:
            if self.has_rounds(name):
                raise ValueError(f"equal_time.methods: {name} has rounds, each with steps of its own; leave it out")
        rows = {TEACHER, *self.methods, *self.ablations, *map(EQUAL_TIME.format, self.equal_time_methods)}
        for number, claim in enumerate(self.claims):
            for name in (claim.better, claim.than):
                if name not in rows:
                    raise ValueError(f"claims.{number}: {name!r} is no row: use one of {', '.join(sorted(rows))}")
            for setting in claim.at or ():
                if setting not in self.test.tokens_per_step:
                    raise ValueError(f"claims.{number}.at: {setting} is not one of test.tokens_per_step")
        return self

    @model_validator(mode="after")
    def _cells_are_the_studys(self) -> Self:
        for place, fields in (("recipe", self.recipe), *((name, each.changes) for name, each in self.variants.items())):
            for key in OWNED:
                if key in fields:
                    raise ValueError(f"{place}: {key} differs from cell to cell: leave it to the study")
            for group, key, cure in (
                ("optim", "lr", "is tuned: give learning_rates"),
                ("model", "source", "is the study's teacher: give teacher"),
            ):
                if isinstance(fields.get(group), dict) and key in fields[group]:
                    raise ValueError(f"{place}: {group}.{key} {cure}")
        return self

    @property
    def variants(self) -> dict[str, MethodConfig]:
        """Methods and ablations by name."""
        return {**self.methods, **self.ablations}

    @property
    def equal_time_methods(self) -> tuple[str, ...]:
        """Methods that are also trained for as long as another."""
        if self.equal_time is None:
            return ()
        if self.equal_time.methods is not None:
            return self.equal_time.methods
        return tuple(name for name in self.methods if name != self.equal_time.to and not self.has_rounds(name))

    def has_rounds(self, name: str) -> bool:
        """Whether a method or ablation rolls out by itself."""
        return bool(self.fields_of(name).get("rounds"))

    def fields_of(self, name: str) -> dict[str, Any]:
        """The fields of a method's or ablation's recipe, without those of its cells."""
        if name in self.methods:
            return merged(self.recipe, self.methods[name].changes)
        ablation = self.ablations[name]
        return merged(self.fields_of(ablation.of), ablation.changes)

    def _mentions(self) -> Iterator[tuple[str, str]]:
        """Where methods are named, and how."""
        for name, ablation in self.ablations.items():
            yield f"ablations: {name}: of", ablation.of
        if self.equal_time is not None:
            yield "equal_time.to", self.equal_time.to
            for each in self.equal_time.methods or ():
                yield "equal_time.methods", each


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a YAML study and apply `key.sub=value` overrides (values in YAML).

    Raises:
        RequestError: no such file, not YAML, unknown or wrong field. Recipes are not looked into.
    """
    name = f"study {path}"
    return checked(StudyConfig, load_fields(path, overrides, name, "teacher, out, methods, recipe"), name)


def folder_name(name: str) -> str:
    """A method's name as a folder: small letters, digits, dots, underscores and hyphens."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")


def _require_once(what: str, values: Sequence[object]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]} is there twice")

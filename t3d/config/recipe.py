"""Typed recipes. Unknown fields are errors; every message is one line that names the field and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from t3d.config.base import Config, first_fault
from t3d.config.groups import (
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    CorruptionConfig,
    DataConfig,
    DistributedConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ReferenceConfig,
    TrackingConfig,
)
from t3d.config.plain_yaml import MAX_DEPTH, parse_yaml
from t3d.config.prompting import PromptConfig
from t3d.config.rounds import RoundConfig, StopRoundsConfig
from t3d.config.schedule import write_out_repeats, write_out_shared
from t3d.errors import RequestError

AnyConfig = TypeVar("AnyConfig", bound=Config)
EXPECTED = {
    "dict_type": "must be a group of keys, not a single value",
    "model_type": "must be a group of keys, not a single value",
    "tuple_type": "must be a list, such as [a, b]",
    "string_type": "must be text; quote what YAML takes for something else (2024, off, null)",
}
"""Kind of a validation error -> what a recipe should hold there, in the words of YAML."""


class Recipe(Config):
    """A whole training run; `out` receives model, checkpoints, metrics and this recipe.

    It learns from `data`; or, in `rounds`, from what its own models roll out on the way. As fields, `every_round` holds
    what all rounds share, and a round may say `repeat: n`; a recipe has them written out.

    `precision` says what is computed in, and held: fp32; tf32 (fp32 held, tensor cores round products' inputs); bf16
    (computed in bfloat16, weights and AdamW's moments held in fp32); bf16_pure (all held in bfloat16, the weights
    rounded stochastically: half the memory). None is bf16 on CUDA, fp32 on the CPU.

    Attributes:
        model: what is trained, and from where it starts.
        objective: what is minimised, with its options.
        data: what to learn from; or
        rounds: who rolls out, and what is learned from that, one after another.
        stop_rounds: when rounds end before the last; None runs them all.
        optim: optimizer, schedule and size of a step.
        corruption: which tokens are hidden.
        batch: how a step is cut into forward passes.
        reference: the frozen model beside the student.
        compute: attention, compilation and what is recomputed.
        distributed: how several processes share the work.
        checkpoint: what is kept on the way.
        evaluation: accuracy on held-out problems on the way; None leaves it out.
        prompt: how questions are put, where the recipe itself asks any.
        tracking: where metrics go beside metrics.jsonl.
        precision: what is computed in, and held.
        log_every: optimizer steps between two lines of metrics.
        seed: of everything drawn at random.
        device: None is cuda where there is one.
        out: folder of the run.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig | None = None
    rounds: tuple[RoundConfig, ...] = ()
    stop_rounds: StopRoundsConfig | None = None
    optim: OptimConfig
    corruption: CorruptionConfig = CorruptionConfig()
    batch: BatchConfig = BatchConfig()
    reference: ReferenceConfig = ReferenceConfig()
    compute: ComputeConfig = ComputeConfig()
    distributed: DistributedConfig = DistributedConfig()
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

    @model_validator(mode="after")
    def _rounds_have_what_they_need(self) -> Self:
        if self.stop_rounds is not None and not self.rounds:
            raise ValueError("stop_rounds: there are no rounds to stop; give rounds, or leave it out")
        if self.evaluation is None and self.stop_rounds is not None and self.stop_rounds.by == "accuracy":
            raise ValueError("stop_rounds.by accuracy: needs evaluation, which measures it")
        for place, each in enumerate(self.rounds):
            if self.evaluation is None and each.student == "best":
                raise ValueError(f"rounds.{place}.student best: needs evaluation, which finds the best one")
            if place and each.optimizer == "carried":
                self._check_moments_can_be_carried(place)
        return self

    def _check_moments_can_be_carried(self, place: int) -> None:
        if self.model.adapter is not None:
            raise ValueError(f"rounds.{place}.optimizer carried: adapters start anew in each round, and so must it")
        if self.rounds[place - 1].student == "best":
            raise ValueError(
                f"rounds.{place}.optimizer carried: moments are the last student's, but the round before left its best"
            )

    def seed_of_round(self, number: int) -> int:
        """What is drawn at random in round `number` (from 1) hangs on this."""
        return self.seed + number

    def carries_optimizer_into(self, number: int) -> bool:
        """Whether round `number` (from 1) begins with the moments of the round before."""
        return 1 < number <= len(self.rounds) and self.rounds[number - 1].optimizer == "carried"

    def of_round(
        self,
        number: int,
        *,
        source: str,
        trajectories: str,
        out: str,
        before: str | None = None,
        first_rows: str | None = None,
    ) -> Recipe:
        """The recipe of the training in one round.

        Args:
            number: of the round, from 1.
            source: the model that it starts from.
            trajectories: folder that it learns from.
            out: its run folder.
            before: run folder of the round before, whose moments it may carry on.
            first_rows: folder that round 1 learned from, of which it may mix rows in. Both None: it does not.

        Raises:
            RequestError: the round's changes are none that a recipe knows.
        """
        chosen = self.rounds[number - 1]
        fields = chosen.applied_to(self.model_dump(exclude={"rounds", "stop_rounds"}))
        fields["model"] = {**fields["model"], "source": source, "init": None}
        fields["data"] = {"trajectories": trajectories, "keep_unfinished": chosen.keep_unfinished}
        if first_rows is not None and number > 1 and chosen.teacher_share:
            mixed = {"mix_in": first_rows, "mix_in_share": chosen.teacher_share, "seed": self.seed_of_round(number)}
            fields["data"] |= mixed
        if self.carries_optimizer_into(number):
            fields["optim"]["moments_from"] = before
        if self.carries_optimizer_into(number + 1):
            fields["optim"]["keep_moments"] = True
        fields["tracking"]["name"] = f"{self.tracking.name or Path(self.out).name}-round-{number}"
        fields |= {"seed": self.seed_of_round(number), "out": out}
        return make_recipe(fields, name=f"rounds.{number - 1}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key.sub=value` overrides (values in YAML).

    Raises:
        RequestError: no such file, not YAML, unknown or wrong field.
    """
    name = f"recipe {path}"
    return make_recipe(load_fields(path, overrides, name, "model, objective, data, optim, out"), name=name)


def load_fields(path: str | Path, overrides: Sequence[str], name: str, keys: str) -> dict[str, Any]:
    """The fields of a YAML file with `key.sub=value` overrides, unchecked.

    Args:
        path: of the file.
        overrides: values in YAML.
        name: what messages call the file; keys: what they say it should hold.

    Raises:
        RequestError: no such file, not YAML, or not a mapping.
    """
    try:
        fields = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(f"{name}: must be a mapping of keys such as {keys}")
    try:
        fields = write_out_repeats(fields)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
    for override in overrides:
        apply_override(fields, override)
    return fields


def make_recipe(fields: dict[str, Any], name: str = "recipe") -> Recipe:
    """A recipe from plain fields; the first wrong one is named in one line.

    Raises:
        RequestError: unknown or wrong field.
    """
    try:
        fields = write_out_shared(write_out_repeats(fields))
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
    recipe = checked(Recipe, fields, name)
    try:
        _check_rounds(recipe)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
    return recipe


def _check_rounds(recipe: Recipe) -> None:
    """Refuse changes of rounds to the recipe's groups that make no recipe, or none that goes on from the one before."""
    numbers = range(1, len(recipe.rounds) + 1)
    trainings = [recipe.of_round(number, source=".", trajectories=".", out=".") for number in numbers]
    for place, (before, after) in enumerate(pairwise(trainings), start=1):
        used, asked = before.optim.optimizer, after.optim.optimizer
        if recipe.carries_optimizer_into(place + 1) and used != asked:
            raise RequestError(
                f"rounds.{place}.optimizer carried: {asked} cannot go on from the moments of {used}; "
                "give both rounds the same optim.optimizer, or start fresh"
            )


def checked(config: type[AnyConfig], fields: dict[str, Any], name: str) -> AnyConfig:
    """A config from plain fields; the first wrong one is named in one line.

    Args:
        config: its class.
        fields: as YAML gives them.
        name: what messages call them.

    Raises:
        RequestError: unknown or wrong field.
    """
    try:
        return config.model_validate(fields)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "extra_forbidden":
            raise RequestError(f"{name}: unknown key {fault.field}: remove it or check its spelling") from error
        fault = replace(fault, message=EXPECTED.get(fault.kind, fault.message))
        raise RequestError(f"{name}: {fault}") from error


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
    if len(parents) > MAX_DEPTH:
        raise RequestError(f"override {override!r}: no recipe is so deep")
    try:
        value, group, inside = parse_yaml(text), fields, ""
        for name in parents:
            key = _key_in(group, name, inside)
            group = group.setdefault(key, {}) if isinstance(group, dict) else group[key]
            inside = name
        group[_key_in(group, last, inside)] = value
    except ValueError as error:  # of the value, or the RequestError of a place that is not there
        raise RequestError(f"override {override!r}: {error}") from error


def _key_in(group: Any, name: str, inside: str) -> Any:
    """What `name` stands for in the mapping or list `group`, which is called `inside`."""
    if isinstance(group, dict):
        return name
    if not isinstance(group, list):
        raise RequestError(f"{inside} is not a group of keys")
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(group):
        raise RequestError(f"{inside} has {len(group)} entries, counted from 0, and none is {name}")
    return int(name)

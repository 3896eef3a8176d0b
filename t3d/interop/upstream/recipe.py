"""`t3d convert upstream-config`: the public code's training config -> a recipe of ours and what it cannot keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from t3d.config import Recipe, make_recipe
from t3d.config.plain_yaml import parse_yaml
from t3d.errors import RequestError, one_line
from t3d.files import write_whole
from t3d.interop.upstream import groups
from t3d.interop.upstream.settings import Remark, Settings

DROPPED = {
    "training.post_num": "not kept: our last block carries no loss behind the stop token at all",
    "training.target_temp": "not kept: the public code reads it and never uses it",
    "training.max_gen_length": "not kept: rows are not cut; give `t3d rollout` a lower --max-new-tokens",
    "training.max_prompt_len": "not kept: nothing drops long prompts",
    "dataset.data_type": "not needed: prompts are in the trajectories",
    "optimizer.params.scale_lr": "not kept: the public code never uses it",
    "lr_scheduler.params.learning_rate": "not kept: the public code takes optimizer.params.learning_rate",
    "experiment.num_node": "not needed: torchrun and SLURM say it (docs/scaling.md)",
    "experiment.start_from_scratch": "not needed: `t3d train --resume` goes on, without it a run starts anew",
    "model.optimized_name": "not kept: the student is OUT/model",
    "training.max_grad_norm": "not kept: the public code takes experiment.max_grad_norm",
    "wandb.entity": "not kept: set the variable WANDB_ENTITY",
    "wandb.resume": "not needed: `t3d train --resume` goes on with the run",
    "wandb.run_id": "not needed: `t3d train --resume` goes on with the run",
    "wandb.project": "not kept: the public code files runs under experiment.project",
}
"""Keys that have no counterpart -> why."""

WHOLE = (
    "What differs whatever is set: one block grid, noise drawn anew each epoch, nothing shown behind the stop token,",
    "the path loss over hidden tokens only, a learning rate that falls once (docs/differences.md has the reasons).",
)
"""Said at the head of every recipe."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A recipe made of the public code's config.

    Attributes:
        recipe: as `load_recipe` reads it.
        remarks: on keys that are not simply kept.
    """

    recipe: Recipe
    remarks: tuple[Remark, ...]


def convert_config(
    file: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    trajectories: str | None = None,
    num_rows: int | None = None,
    num_gpus: int = 8,
    improved: bool = False,
) -> Conversion:
    """Write a recipe that trains as a config of the public code says, what it cannot keep in comments at its head.

    Args:
        file: such as its configs/ddo_sdar_full_self.yaml.
        out: the recipe; a new file.
        overrides: `key=value`, as its command line takes them.
        trajectories: folder that `t3d convert upstream-rollouts` wrote; None is named after the config's data set.
        num_rows: its rows, by which epochs become steps; None counts them, where the folder is there.
        num_gpus: that the config was meant for, by which accumulation becomes examples a step.
        improved: hide the tokens revealed last, not first, and learn from finished answers only.

    Raises:
        RequestError: the file is no such config, asks for what we have not, or `out` exists.
    """
    if out.exists():
        raise RequestError(f"--out {out}: exists already; choose another name")
    settings = Settings.load(file, overrides)
    _check_is_training(settings)
    fields = _fields(settings, trajectories, num_rows, num_gpus, improved)
    settings.drop_rest()
    name = f"config {file}"
    recipe = make_recipe(fields, name)
    _check_objective(recipe, name)
    text = _text(file, fields, settings.remarks, improved)
    assert make_recipe(parse_yaml(text), name) == recipe
    write_whole(out, text)
    return Conversion(recipe, tuple(settings.remarks))


def _check_is_training(settings: Settings) -> None:
    if settings.holds("training") and settings.holds("model"):
        return
    if settings.holds("rollout"):
        raise RequestError(
            f"{settings.name}: is of a rollout or an evaluation, which are commands here: {_command(settings)} "
            "(docs/differences.md); give a training config"
        )
    raise RequestError(f"{settings.name}: holds no keys model and training; give a training config of the public code")


def _command(settings: Settings) -> str:
    """The command that decodes as the group `rollout` says, with the public code's own defaults."""
    measures = settings.holds("execute")
    block_size = settings.whole("rollout.block_size", 8) or 1
    steps = settings.whole("rollout.denoising_steps_per_block", 1) or 1
    rule = settings.text("rollout.remasking_strategy", "low_confidence_static")
    threshold = settings.number("rollout.dynamic_threshold", 0.0)
    is_dynamic = rule == "low_confidence_dynamic"
    options: dict[str, object] = {"--block-size": block_size}
    if not measures:
        options |= {"--steps-per-block": steps, "--rule": rule, **({"--threshold": threshold} if is_dynamic else {})}
    elif is_dynamic:
        options |= {"--tokens-per-step": "''", "--threshold": threshold}
    else:
        options |= {"--tokens-per-step": max(1, block_size // steps), "--threshold": "''", "--rule": rule}
    options |= {
        "--temperature": settings.number("rollout.temperature", 0.7),
        "--top-k": settings.whole("rollout.top_k", 50),
        "--top-p": settings.number("rollout.top_p", 0.9),
        "--max-new-tokens": settings.whole("rollout.max_token", 512),
    }
    return f"t3d {'eval' if measures else 'rollout'} " + " ".join(f"{name} {value}" for name, value in options.items())


def _fields(
    settings: Settings, trajectories: str | None, num_rows: int | None, num_gpus: int, improved: bool
) -> dict[str, Any]:
    """The recipe's fields; what they cannot hold becomes remarks."""
    data_name = settings.text("dataset.optimization_data", "rollouts")
    trajectories = trajectories or f"runs/{data_name}"
    project = settings.text("experiment.project", "t3d")
    settings.remark(
        "dataset.optimization_data",
        data_name,
        f"data.trajectories, which t3d convert upstream-rollouts makes of it: {trajectories}",
    )
    fields = {
        "model": {"source": groups.require_model(settings)},
        "objective": groups.objective_fields(settings),
        "data": {"trajectories": trajectories, "keep_unfinished": not improved},
        "optim": groups.optim_fields(settings, _rows(trajectories, num_rows), num_gpus),
        "corruption": groups.corruption_fields(settings, improved),
        "reference": groups.reference_fields(settings),
        "compute": groups.compute_fields(settings),
        "checkpoint": groups.checkpoint_fields(settings),
        "tracking": {"to": ["wandb"], "project": project},
        "precision": groups.precision_field(settings),
        "seed": settings.whole("training.seed", 0),
        "out": f"runs/{project}",
    }
    for key, why in DROPPED.items():
        settings.drop(key, why)
    return {name: value for name, value in fields.items() if value != {}}


def _rows(trajectories: str, num_rows: int | None) -> int | None:
    """How many rows an epoch has; None if nobody knows."""
    if num_rows is not None or not Path(trajectories).is_dir():
        return num_rows
    from t3d.trajectories import count

    return count(trajectories)


def _check_objective(recipe: Recipe, name: str) -> None:
    from t3d.objectives import build_objective

    try:
        build_objective(recipe.objective.name, **recipe.objective.options)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


def _text(file: Path, fields: dict[str, Any], remarks: Sequence[Remark], improved: bool) -> str:
    """The recipe's YAML below its remarks."""
    head = [f"Made by t3d convert upstream-config {file.name}{' --improved' * improved}.", *WHOLE, *map(str, remarks)]
    comments = "".join(f"# {one_line(line)}\n" for line in head)
    return comments + yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)

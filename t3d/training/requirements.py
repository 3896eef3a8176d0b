"""What a recipe asks for beyond its single keys: keys that go together, packages that are there."""

from __future__ import annotations

from importlib.util import find_spec

from t3d.config import Recipe
from t3d.errors import RequestError
from t3d.objectives import build_objective


def check_training(recipe: Recipe) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Raises:
        RequestError: keys that exclude each other, or an optional package that is not installed.
    """
    _check_objective(recipe)
    model, form = recipe.model, recipe.reference.form
    if form == "adapter" and model.adapter is None:
        raise RequestError("reference.form adapter: needs model.adapter; choose copy or offload, or train adapters")
    if model.adapter is not None and model.adapter.type == "dora" and recipe.precision == "bf16_pure":
        raise RequestError(
            "model.adapter.type dora: its magnitudes need more digits than precision bf16_pure holds; "
            "set precision: bf16, or type: lora"
        )
    if model.quantize is not None:
        if model.init is not None:
            raise RequestError("model.quantize: adapters beside random four-bit weights learn nothing; give source")
        if form in ("copy", "offload"):
            raise RequestError(f"reference.form {form}: not with model.quantize; adapter shares the four-bit weights")
        check_package("bitsandbytes", f"model.quantize {model.quantize}")
    if recipe.distributed.strategy == "fsdp":
        _check_sharded(recipe)
    if recipe.optim.optimizer == "adamw_8bit":
        check_package("torchao", "optim.optimizer adamw_8bit")


def _check_sharded(recipe: Recipe) -> None:
    if recipe.model.adapter is not None:
        raise RequestError(
            "distributed.strategy fsdp: trains all weights; adapters beside a model that each process holds whole take "
            "strategy: ddp"
        )
    if recipe.optim.optimizer == "adamw_8bit":
        raise RequestError("distributed.strategy fsdp: deals out moments of adamw only; set optim.optimizer: adamw")


def _check_objective(recipe: Recipe) -> None:
    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    if objective.needs_trajectories and recipe.data is not None and recipe.data.task is not None:
        raise RequestError(
            f"objective {recipe.objective.name}: needs trajectories, not data.task; run t3d rollout first"
        )
    if objective.with_complement and recipe.optim.examples_per_step % 2:
        raise RequestError(
            f"optim.examples_per_step {recipe.optim.examples_per_step}: must be even: {recipe.objective.name} trains a "
            "row with a random mask and with its complement in the same step"
        )


def check_shares(recipe: Recipe, num_processes: int) -> None:
    """Refuse steps of too few examples.

    Raises:
        RequestError: some processes would have none.
    """
    if recipe.optim.examples_per_step < num_processes:
        raise RequestError(
            f"optim.examples_per_step {recipe.optim.examples_per_step}: must be at least one for each of the "
            f"{num_processes} processes"
        )


def check_package(name: str, needed_by: str) -> None:
    """Refuse in one line if an optional package is missing.

    Raises:
        RequestError: it is.
    """
    if find_spec(name) is None:
        raise RequestError(f"{needed_by}: needs {name}, which is not installed; pip install 't3d[gpu]'")

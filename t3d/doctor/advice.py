"""What to change in a training that does not fit: each change is worked out before it is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from t3d.config import Recipe
from t3d.corruption import TrainingRow
from t3d.doctor.gpus import Cluster
from t3d.doctor.subject import Subject
from t3d.doctor.training import Training, plan_training
from t3d.errors import RequestError
from t3d.training.parallel.strategy import has_frozen_model
from t3d.training.reference import reference_form

FEWEST_TOKENS, MOST_GPUS = 2048, 64
"""Of a batch and of a machine: beyond these nothing is tried."""

Change = tuple[str, Recipe, Cluster]
"""As options of the command, what it makes of the recipe, and of the cluster."""


def changes_that_fit(planned: Training, asked: Recipe, subject: Subject, rows: Sequence[TrainingRow]) -> list[str]:
    """What makes a training fit, in the order in which it is tried: each change that does alone, else several together.

    Args:
        planned: a training that does not fit.
        asked: its recipe, as it was written.
        subject, rows: as in `plan_training`.

    Returns:
        changes of which one is enough, as options of `t3d doctor`; none if nothing of all this is.
    """

    def fits(change: Change) -> bool | None:
        """None: training would refuse it."""
        _, recipe, larger = change
        alike = (recipe.model, recipe.precision) == (asked.model, asked.precision)
        weights = planned.weights if alike else None
        try:
            return plan_training(recipe, subject, rows, larger, planned.name, weights).memory.fits
        except RequestError:
            return None

    alone: list[str] = []
    for step in STEPS:
        enough = (change[0] for change in step(asked, planned.cluster) if fits(change))
        alone.extend(islice(enough, 1))  # the mildest of its kind
    return alone or _together(asked, planned.cluster, fits)


def _together(asked: Recipe, cluster: Cluster, fits: Callable[[Change], bool | None]) -> list[str]:
    """Change after change, each as far as it goes, until one is enough."""
    said: list[str] = []
    for step in STEPS:
        furthest = None
        for change in step(asked, cluster):
            found = fits(change)
            if found:
                return [" ".join([*said, change[0]])]
            furthest = furthest if found is None else change
        if furthest is not None:
            what, asked, cluster = furthest
            said.append(what)
    return []


def _fewer_tokens(recipe: Recipe, cluster: Cluster) -> list[Change]:
    changes, tokens = [], recipe.batch.tokens_per_batch // 2
    while tokens >= FEWEST_TOKENS:
        batch = recipe.batch.model_copy(update={"tokens_per_batch": tokens})
        changes.append((f"--set batch.tokens_per_batch={tokens}", recipe.model_copy(update={"batch": batch}), cluster))
        tokens //= 2
    return changes


def _recompute(recipe: Recipe, cluster: Cluster) -> list[Change]:
    if recipe.compute.checkpoint_layers is None:  # as many as it takes, already
        return []
    compute = recipe.compute.model_copy(update={"checkpoint_layers": None})
    return [("--set compute.checkpoint_layers=null", recipe.model_copy(update={"compute": compute}), cluster)]


SHARDED = "--set distributed.strategy=fsdp --set distributed.gradients=sharded"


def _sharded(recipe: Recipe) -> Recipe:
    distributed = recipe.distributed.model_copy(update={"strategy": "fsdp", "gradients": "sharded"})
    return recipe.model_copy(update={"distributed": distributed})


def _shard(recipe: Recipe, cluster: Cluster) -> list[Change]:
    chosen = recipe.distributed
    if cluster.num_gpus == 1 or (chosen.strategy, chosen.gradients) == ("fsdp", "sharded"):
        return []
    return [(SHARDED, _sharded(recipe), cluster)]


def _more_gpus(recipe: Recipe, cluster: Cluster) -> list[Change]:
    """More on each machine up to eight, then more machines; sharded, since DDP holds as much on any number."""
    changes, larger = [], cluster
    while larger.num_gpus * 2 <= min(MOST_GPUS, recipe.optim.examples_per_step):
        grown = "gpus_per_node" if larger.gpus_per_node * 2 <= 8 else "nodes"
        larger = replace(larger, **{grown: 2 * getattr(larger, grown)})
        changes.append((f"--gpus {larger.gpus_per_node} --nodes {larger.nodes} {SHARDED}", _sharded(recipe), larger))
    return changes


def _offload(recipe: Recipe, cluster: Cluster) -> list[Change]:
    if not has_frozen_model(recipe) or reference_form(recipe) != "copy":
        return []
    reference = recipe.reference.model_copy(update={"form": "offload"})
    return [("--set reference.form=offload", recipe.model_copy(update={"reference": reference}), cluster)]


def _fewer_bits(recipe: Recipe, cluster: Cluster) -> list[Change]:
    if recipe.precision == "bf16_pure" or recipe.model.quantize is not None:
        return []
    if recipe.model.adapter is not None:
        model = recipe.model.model_copy(update={"quantize": "nf4"})
        return [("--set model.quantize=nf4", recipe.model_copy(update={"model": model}), cluster)]
    return [("--set precision=bf16_pure", recipe.model_copy(update={"precision": "bf16_pure"}), cluster)]


STEPS: tuple[Callable[[Recipe, Cluster], list[Change]], ...] = (
    _fewer_tokens,
    _recompute,
    _shard,
    _more_gpus,
    _offload,
    _fewer_bits,
)
"""The order in which they are tried; each gives its changes from the mildest on."""

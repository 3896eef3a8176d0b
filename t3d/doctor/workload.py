"""What an optimizer step of a recipe holds: made by the code that makes it in training, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t3d.bench.lengths import Lengths, get_lengths, random_rows
from t3d.config import Recipe
from t3d.corruption import PackedBatch, TrainingRow
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig
from t3d.objectives import build_objective
from t3d.training.computing import takes_heads
from t3d.training.data import Share, StepDataset
from t3d.training.throughput import Work, work_of


@dataclass(frozen=True, slots=True)
class StepWork:
    """One optimizer step, as the process sees it that has most to do.

    Attributes:
        whole: of all processes.
        own: of this one.
        num_batches: of this one.
        largest_positions: of its largest batch, padding included.
        largest_scored: tokens with loss of the batch that has most.
    """

    whole: Work
    own: Work
    num_batches: int
    largest_positions: int
    largest_scored: int


def step_work(
    recipe: Recipe, config: BlockDiffusionConfig, rows: Sequence[TrainingRow], num_processes: int
) -> StepWork:
    """The first step of a recipe over rows, shared by processes."""
    whole = _batches(recipe, config, rows, Share())
    own = whole if num_processes == 1 else _batches(recipe, config, rows, Share(0, num_processes))
    return StepWork(
        whole=work_of(whole),
        own=work_of(own),
        num_batches=len(own),
        largest_positions=max(batch.input_ids.numel() for batch in own),
        largest_scored=max(batch.tokens.targets.shape[0] for batch in own),
    )


def _batches(
    recipe: Recipe, config: BlockDiffusionConfig, rows: Sequence[TrainingRow], share: Share
) -> list[PackedBatch]:
    return StepDataset(
        list(rows),
        corruption=recipe.corruption,
        objective=build_objective(recipe.objective.name, **recipe.objective.options),
        batch=recipe.batch,
        num_steps=recipe.optim.steps,
        examples_per_step=recipe.optim.examples_per_step,
        model=config,
        seed=recipe.seed,
        share=share,
        tiled=is_tiled(recipe, config),
    )[0]


def is_tiled(recipe: Recipe, config: BlockDiffusionConfig) -> bool:
    """Whether attention will be FlexAttention on a CUDA device (`t3d.training.computing`)."""
    return recipe.compute.attention != "sdpa" and takes_heads(config)


def rows_of(lengths: Lengths | str, recipe: Recipe, config: BlockDiffusionConfig, number: int = 1) -> list[TrainingRow]:
    """Made-up rows for one step; `number` gives others, as `t3d bench train` numbers its steps.

    Args:
        lengths: of prompts and responses, or their name in `t3d.bench.LENGTHS`.
        recipe: examples of a step, and the seed.
        config: of the model.
        number: of the step.

    Raises:
        RequestError: no such lengths, or rows that the model has no positions for.
    """
    found = get_lengths(lengths) if isinstance(lengths, str) else lengths
    if found.longest > config.max_position_embeddings:
        raise RequestError(
            f"--lengths: rows of up to {found.longest} tokens do not fit the model's {config.max_position_embeddings} "
            "positions"
        )
    objective = build_objective(recipe.objective.name, **recipe.objective.options)
    count = recipe.optim.examples_per_step // (2 if objective.with_complement else 1)
    return random_rows(found, max(1, count), config, recipe.seed, number)


def mean_lengths(rows: Sequence[TrainingRow]) -> tuple[float, float]:
    """Tokens of a prompt and of a response, on average."""
    prompts, responses = ([len(ids) for ids in each] for each in zip(*map(_ids, rows), strict=True))
    return float(np.mean(prompts)), float(np.mean(responses))


def _ids(row: TrainingRow) -> tuple[np.ndarray, np.ndarray]:
    return row.prompt_ids, row.response_ids

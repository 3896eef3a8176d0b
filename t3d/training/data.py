"""What a step trains on: rows from trajectories or a task, corrupted anew every epoch, packed.

The order of rows is a function of (seed, epoch) and the noise one of (seed, epoch, row id) and of how far the run is,
so step s holds the same examples with the same noise however many processes share it and wherever a run was resumed.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from t3d import trajectories
from t3d.config import BatchConfig, CorruptionConfig, DataConfig, PromptConfig
from t3d.corruption import NoisyExample, PackedBatch, TrainingRow, corrupt, pack, pack_in_budget, row_generator
from t3d.corruption.hiding import tokens_of_example
from t3d.corruption.packing import deal, divide
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig, mask_token_id, tokenizer_fingerprint
from t3d.objectives import Objective
from t3d.tasks import get_task
from t3d.tasks.prompts import put_questions, render_solution
from t3d.training.mixing import mixed

logger = logging.getLogger(__name__)


def load_rows(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, config: BlockDiffusionConfig, form: PromptConfig
) -> list[TrainingRow]:
    """The rows that a recipe's `data` names, tokenised with this tokenizer.

    Args:
        data: a task's worked answers, or trajectories.
        tokenizer, config: the model's.
        form: how the task's questions are put; trajectories keep the prompts that they were rolled out with.

    Raises:
        RequestError: trajectories of another tokenizer or mask id, problems without a worked answer, or no row left to
            train on.
    """
    rows = _task_rows(data, tokenizer, form) if data.task else _trajectory_rows(data, tokenizer, config)
    if data.mix_in is not None:
        others = data.model_copy(update={"trajectories": data.mix_in})
        rows = mixed(rows, _trajectory_rows(others, tokenizer, config), data.mix_in_share, data.seed)
    limit = config.max_position_embeddings
    fitting = [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= limit]
    if not fitting:
        raise RequestError(
            f"data: no row left to train on in {data.trajectories or data.task}: all {len(rows)} are longer than the "
            f"model's {limit} positions"
        )
    if len(fitting) < len(rows):
        logger.warning("left out %d rows longer than the model's %d positions", len(rows) - len(fitting), limit)
    return fitting


def _task_rows(data: DataConfig, tokenizer: PreTrainedTokenizerBase, asked: PromptConfig) -> list[TrainingRow]:
    assert data.task is not None
    task = get_task(data.task, data.data)
    problems = task.problems(data.split, data.count, data.seed)
    unsolved = next((each for each in problems if each.solution is None), None)
    if unsolved is not None:
        raise RequestError(f"data: {data.task} has no worked answer of {unsolved.problem_id} to learn from")
    put = put_questions(task, problems, asked, tokenizer)
    prompts = _encode(tokenizer, [prompt.text for prompt in put.prompts])
    responses = _encode(tokenizer, [render_solution(problem, put.form) for problem in problems])
    return [
        TrainingRow(
            row_id=problem.problem_id,
            prompt_ids=np.asarray(prompt_ids, dtype=np.int64),
            response_ids=np.asarray([*response_ids, tokenizer.eos_token_id], dtype=np.int64),
        )
        for problem, prompt_ids, response_ids in zip(problems, prompts, responses, strict=True)
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _trajectory_rows(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, config: BlockDiffusionConfig
) -> list[TrainingRow]:
    assert data.trajectories is not None
    meta = trajectories.read_meta(data.trajectories)
    cure = "roll out again with this model, or train the model that the trajectories came from"
    if meta.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise RequestError(f"data.trajectories {data.trajectories}: made with another tokenizer; {cure}")
    if meta.mask_token_id != config.mask_token_id:
        raise RequestError(
            f"data.trajectories {data.trajectories}: mask id {meta.mask_token_id}, "
            f"the model's is {config.mask_token_id}; {cure}"
        )
    every = list(trajectories.read(data.trajectories))
    kept = [row for row in every if row.response_ids and (row.finish_reason == "stop" or data.keep_unfinished)]
    if not kept:
        raise RequestError(
            f"data: no row left to train on in {data.trajectories}: none of {len(every)} ended by a stop token; "
            "roll out with a higher --max-new-tokens, or set data.keep_unfinished=true"
        )
    left_out = len(every) - len(kept)
    if left_out:
        logger.warning("left out %d of %d trajectories that did not end by a stop token", left_out, len(every))
    return [TrainingRow.from_trajectory(row) for row in kept]


@dataclass(frozen=True)
class Share:
    """Which part of each step this process trains on; all parts together are the step, however many there are."""

    rank: int = 0
    world_size: int = 1


class StepDataset(Dataset[list[PackedBatch]]):
    """Item s is optimizer step s (0-based): the packed batches of this process's share of its examples.

    An epoch gives one example of each row, or two in turn where the objective also trains the complement of each mask.
    """

    def __init__(
        self,
        rows: list[TrainingRow],
        *,
        corruption: CorruptionConfig,
        objective: Objective,
        batch: BatchConfig,
        num_steps: int,
        examples_per_step: int,
        model: BlockDiffusionConfig,
        seed: int,
        share: Share,
        tiled: bool = False,
    ) -> None:
        self._rows, self._corruption, self._objective, self._batch = rows, corruption, objective, batch
        self._num_steps, self._examples_per_step, self._seed, self._share = num_steps, examples_per_step, seed, share
        self._block_size = corruption.block_size or model.block_size
        self._mask_token_id, self._vocab_size = mask_token_id(model), model.vocab_size
        self._tiled = tiled
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> list[PackedBatch]:
        places, num_batches, _ = self._shared_out(step)
        return pack_in_budget(
            self._examples(step, places),
            tokens_per_batch=self._batch.tokens_per_batch,
            row_tokens=self._batch.row_tokens,
            block_size=self._block_size,
            num_examples_in_step=self._examples_per_step,
            tiled=self._tiled,
            at_least=num_batches,
        )

    def apart(self, step: int) -> list[PackedBatch]:
        """The examples of item `step`, each in a batch of its own; empty batches where another process has more."""
        places, _, most = self._shared_out(step)
        examples = self._examples(step, places)
        return [
            pack(
                examples[index : index + 1],
                row_tokens=None,
                block_size=self._block_size,
                num_examples_in_step=self._examples_per_step,
                tiled=self._tiled,
            )
            for index in range(most)
        ]

    def rows_of(self, step: int) -> list[str]:
        """Ids of the rows of item `step`, of all processes."""
        first = step * self._examples_per_step
        return sorted({self._drawn(place)[0].row_id for place in range(first, first + self._examples_per_step)})

    def _shared_out(self, step: int) -> tuple[list[int], int, int]:
        """This process's places of a step, nearly as many tokens as any other's; the most batches, and places, of any.

        Processes that gather weights from each other wait for the one with the most batches: all have to run as many.
        """
        first = step * self._examples_per_step
        sized = sorted((-self._num_tokens(place), place) for place in range(first, first + self._examples_per_step))
        lengths = [-negative for negative, _ in sized]
        hands = deal(lengths, self._share.world_size)
        budget = self._batch.tokens_per_batch
        num_batches = max(len(divide([lengths[index] for index in hand], budget, self._tiled)) for hand in hands)
        places = sorted(sized[index][1] for index in hands[self._share.rank])
        return places, num_batches, max(map(len, hands))

    def _examples(self, step: int, places: list[int]) -> list[NoisyExample]:
        progress = progress_at(step, self._num_steps)
        return [self._example(place, progress) for place in places]

    def _num_tokens(self, place: int) -> int:
        """Of the example at a place, which need not be made for that."""
        row, _, _ = self._drawn(place)
        return tokens_of_example(len(row.prompt_ids), len(row.response_ids), self._block_size)

    def _drawn(self, place: int) -> tuple[TrainingRow, int, int]:
        """Which row comes at a place counted through the whole run, in which epoch, and which half of its mask."""
        turn, half = divmod(place, 2) if self._objective.with_complement else (place, 0)
        epoch, index = divmod(turn, len(self._rows))
        return self._rows[self._epoch_order(epoch)[index]], epoch, half

    def _example(self, place: int, progress: float) -> NoisyExample:
        row, epoch, half = self._drawn(place)
        return corrupt(
            row,
            self._corruption,
            self._objective.hider,
            block_size=self._block_size,
            mask_token_id=self._mask_token_id,
            vocab_size=self._vocab_size,
            rng=row_generator(self._seed, epoch, row.row_id),
            progress=progress,
            complement=half == 1,
        )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            rng = row_generator(self._seed, epoch, "order of rows")
            self._order = (epoch, rng.permutation(len(self._rows)))
        return self._order[1]


def progress_at(step: int, num_steps: int) -> float:
    """How far a run of so many steps is at step `step` (0-based): 0 at its first, 1 at its last."""
    return step / max(1, num_steps - 1)


def prepared_steps(
    dataset: StepDataset, first_step: int, last_step: int, num_workers: int
) -> Generator[list[PackedBatch], None, None]:
    """Steps `first_step` .. `last_step` - 1 in order, prepared ahead by `num_workers` processes (0: by this one)."""
    steps = range(first_step, last_step)
    if num_workers == 0:
        yield from (dataset[step] for step in steps)
        return
    # Plain bytes through the workers' pipe: torch would open a socket for every tensor of a batch.
    loader = DataLoader(
        dataset, sampler=steps, batch_size=None, num_workers=num_workers, prefetch_factor=4, collate_fn=pickle.dumps
    )
    yield from map(pickle.loads, loader)

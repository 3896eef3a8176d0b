"""The student visits, the teacher labels: answers that one model begins and another completes.

Each answer is cut at the end of one of its blocks, and what stands before the cut is prompt to the teacher. Tokens stay
tokens: nothing is decoded to text and encoded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from t3d.config import PromptConfig
from t3d.corruption import row_generator
from t3d.engine import Engine
from t3d.progress import Reporter, progress
from t3d.trajectories import TrajectoryWriter
from t3d.trajectories.rollout import ROWS_PER_SHARD, rollout_meta
from t3d.types import Decoding, Generation, Trajectory


def cut_of(row: Trajectory, block_size: int, seed: int) -> int:
    """How many of a row's response tokens stay: a number that ends a block and leaves some to complete.

    All such places are as likely, and which one is drawn hangs on (seed, row id) alone. Where no block ends inside of
    the response, none stays.
    """
    prompt_length, length = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
    ends = range((prompt_length // block_size + 1) * block_size, length, block_size)
    if not ends:
        return 0
    rng = row_generator(seed, 0, f"cut of {row.prompt_id}/{row.sample}")
    return ends[int(rng.integers(len(ends)))] - prompt_length


def complete(
    engine: Engine,
    begun: Sequence[Trajectory],
    decoding: Decoding,
    folder: Path,
    *,
    model_name: str,
    form: PromptConfig,
) -> None:
    """Cut answers and have them completed into a trajectory folder; one that a kill left unfinished is gone on with.

    A row's prompt is the old one with what stays of the response, and its response the rest, anew. Together they are
    as long as the answer was allowed to be, and it is decoded with the row's own seed.

    Args:
        engine: the teacher.
        begun: the answers, in their order.
        decoding: resolved; `max_new_tokens` is that of a whole answer, and its seed draws the cuts.
        folder: to write to.
        model_name, form: for the metadata, as in `t3d.trajectories.rollout`.

    Raises:
        WorkError: the disk refuses; what is finished stays.
    """
    assert decoding.block_size is not None
    cuts = [cut_of(row, decoding.block_size, decoding.seed) for row in begun]
    shards = [range(start, min(start + ROWS_PER_SHARD, len(begun))) for start in range(0, len(begun), ROWS_PER_SHARD)]
    asked = json.dumps([[row.prompt_id, row.sample, [*row.prompt_ids], [*row.response_ids]] for row in begun])
    fingerprint = hashlib.sha256(asked.encode()).hexdigest()[:16]
    meta = rollout_meta(engine, decoding, model_name, form)
    writer = TrajectoryWriter(folder, meta, fingerprint, len(shards), resume=True)
    done = sum(len(shards[index]) for index in writer.finished)
    with progress("complete", len(begun), "answers", done=done) as bar:
        for index, shard in enumerate(shards):
            if index not in writer.finished:
                rows = [(begun[at], cuts[at]) for at in shard]
                writer.write_shard(index, _complete_shard(engine, rows, decoding, bar))


def _complete_shard(
    engine: Engine, rows: Sequence[tuple[Trajectory, int]], decoding: Decoding, bar: Reporter
) -> list[Trajectory]:
    """Rows, each with the number of response tokens that stay, completed."""
    assert engine.tokenizer is not None
    stay = [[*row.response_ids[:cut]] for row, cut in rows]
    generations = engine.generate(
        [[*row.prompt_ids, *begun] for (row, _), begun in zip(rows, stay, strict=True)],
        [replace(decoding, max_new_tokens=decoding.max_new_tokens - cut) for _, cut in rows],
        seeds=[row.seed for row, _ in rows],
        on_finish=lambda *_: bar.advance(1),
    )
    texts = engine.tokenizer.batch_decode(stay)
    return [_completed(row, *parts) for (row, _), *parts in zip(rows, texts, generations, strict=True)]


def whole_answers(
    completed: Sequence[Trajectory], begun: Sequence[Trajectory], tokenizer: PreTrainedTokenizerBase
) -> list[Trajectory]:
    """Completed rows whose texts are whole answers, for graders: what stayed of the response, then its completion."""
    pairs = list(zip(completed, begun, strict=True))
    ids = [[*row.prompt_ids[len(first.prompt_ids) :], *row.response_ids] for row, first in pairs]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [replace(row, response_text=text) for row, text in zip(completed, texts, strict=True)]


def _completed(row: Trajectory, stayed: str, generation: Generation) -> Trajectory:
    return replace(
        row,
        prompt_ids=generation.prompt_ids,
        response_ids=generation.token_ids,
        reveal_step=generation.reveal_steps,
        confidence=generation.confidences,
        num_forwards=generation.num_forwards,
        finish_reason=generation.finish_reason,
        prompt_text=row.prompt_text + stayed,
        response_text=generation.text or "",
    )

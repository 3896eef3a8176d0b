"""Roll out: decode every prompt and write down what was revealed when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import t3d
from t3d.config import PromptConfig
from t3d.progress import progress
from t3d.trajectories.parts import WHOLE, Part
from t3d.trajectories.schema import TrajectoryMeta
from t3d.trajectories.store import TrajectoryWriter
from t3d.trajectories.work import RolloutSummary, decode, make_work_list
from t3d.types import Decoding, Generation, Prompt

if TYPE_CHECKING:
    from t3d.engine import Engine

ROWS_PER_SHARD = 1024


def rollout(
    engine: Engine,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    folder: str | Path,
    *,
    model_name: str,
    form: PromptConfig | None = None,
    samples: int = 1,
    resume: bool = False,
    rows_per_shard: int = ROWS_PER_SHARD,
    part: Part = WHOLE,
    shown: bool = True,
) -> RolloutSummary:
    """Decode `samples` responses to every prompt into a trajectory folder.

    The work list (prompts in order, each with its samples) is cut into shards; a shard is on disk once all its rows
    are, and a response depends on its own seed alone, so an interrupted rollout that is resumed ends with the rows of
    an uninterrupted one, and so do several processes that each do a part.

    Args:
        engine: model and tokenizer.
        prompts: rendered; each is tokenised once, here.
        decoding: one setting for all; its seed gives every response a seed of its own.
        folder: new, empty, or the unfinished rollout of the same request.
        model_name: how the metadata names the model.
        form: that the prompts were rendered by, for the metadata; None if they were not rendered by us.
        samples: responses a prompt.
        resume: go on where an earlier run stopped.
        rows_per_shard: rows of one file.
        part: which of the shards to do; other processes do the other parts, into the same folder.
        shown: show progress.

    Raises:
        RequestError: no prompts, a prompt that cannot be decoded, or a folder that holds something else.
        WorkError: the disk refuses; what is finished stays.
    """
    work = make_work_list(prompts, engine.tokenizer, decoding.seed, samples, rows_per_shard)
    engine.check(work.prompt_ids, decoding)  # all of them, before the first shard
    meta = rollout_meta(engine, decoding, model_name, form)
    writer = TrajectoryWriter(folder, meta, work.fingerprint, len(work.shards), resume, part)
    if shown:
        work.warn_of_idle(part.count)
    summary, started = RolloutSummary(), time.monotonic()
    name = "roll out" if part == WHOLE else f"roll out {part}"
    done, total = (sum(len(work.shards[i]) for i in each) for each in (writer.finished, part.of(len(work.shards))))
    with progress(name, total, "answers", done=done, shown=shown) as bar:

        def count(_: int, generation: Generation) -> None:
            summary.add(generation)
            summary.seconds = time.monotonic() - started
            bar.advance(1, **paces(summary))

        for index in writer.missing:
            writer.write_shard(index, decode(engine, work.shards[index], decoding, count))
    return summary


def paces(summary: RolloutSummary) -> dict[str, float | str]:
    """What stands beside a rollout's progress bar."""
    return {"tokens/s": f"{summary.tokens_per_second:,.0f}", "TPF": f"{summary.tokens_per_forward:.2f}"}


def rollout_meta(
    engine: Engine, decoding: Decoding, model_name: str, form: PromptConfig | None = None
) -> TrajectoryMeta:
    """The metadata of a rollout with this engine, these settings and prompts of this form."""
    from t3d.models import model_fingerprint, tokenizer_fingerprint  # those who only read files need no models

    assert engine.tokenizer is not None
    settings = decoding.resolve(engine.model.config.block_size)
    assert settings.block_size is not None
    assert settings.steps_per_block is not None
    return TrajectoryMeta(
        model=model_name,
        revision=model_fingerprint(engine.model),
        tokenizer_fingerprint=tokenizer_fingerprint(engine.tokenizer),
        mask_token_id=engine.mask_token_id,
        eos_token_ids=tuple(sorted({*engine.stop_token_ids, *(settings.stop_token_ids or ())})),
        block_size=settings.block_size,
        steps_per_block=settings.steps_per_block,
        rule=settings.rule,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        threshold=settings.threshold,
        entropy_bound=settings.entropy_bound,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        software_version=t3d.__version__,
        prompt=form,
    )

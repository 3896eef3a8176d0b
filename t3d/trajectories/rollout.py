"""Roll out: decode every prompt and write down what was revealed when."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import t3d
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.engine.engine import OnFinish
from t3d.errors import RequestError
from t3d.models import model_fingerprint, tokenizer_fingerprint
from t3d.noise import derive_seeds
from t3d.progress import progress
from t3d.trajectories.schema import TrajectoryMeta
from t3d.trajectories.store import TrajectoryWriter
from t3d.types import Decoding, Generation, Prompt, Trajectory

ROWS_PER_SHARD = 1024


@dataclass(slots=True)
class RolloutSummary:
    """What a rollout did, without what an earlier run had already written.

    Attributes:
        num_rows, num_tokens, num_forwards: totals of this run.
        seconds: wall time.
        finish_reasons: how many responses ended in which way.
    """

    num_rows: int = 0
    num_tokens: int = 0
    num_forwards: int = 0
    seconds: float = 0.0
    finish_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> float:
        """TPF over all forwards, prefill included."""
        return self.num_tokens / max(1, self.num_forwards)

    def add(self, generation: Generation) -> None:
        """Count one response."""
        self.num_rows += 1
        self.num_tokens += len(generation.token_ids)
        self.num_forwards += generation.num_forwards
        reason = generation.finish_reason
        self.finish_reasons[reason] = self.finish_reasons.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One response to make: which prompt, with its tokens, which sample of it, with which seed."""

    prompt: Prompt
    prompt_ids: list[int]
    sample: int
    seed: int


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
) -> RolloutSummary:
    """Decode `samples` responses to every prompt into a trajectory folder.

    The work list (prompts in order, each with its samples) is cut into shards; a shard is on disk once all its rows
    are, and a response depends on its own seed alone, so an interrupted rollout that is resumed ends with the rows of
    an uninterrupted one.

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

    Raises:
        RequestError: no prompts, a prompt that cannot be decoded, or a folder that holds something else.
        WorkError: the disk refuses; what is finished stays.
    """
    if engine.tokenizer is None:
        raise RequestError("the model folder holds no tokenizer: save one beside the model to roll it out")
    if not prompts or samples < 1:
        raise RequestError("rollout needs at least one prompt and one sample of it")
    prompt_ids = engine.encode([prompt.text for prompt in prompts])
    engine.check(prompt_ids, decoding)  # all of them, before the first shard
    seeds = derive_seeds(decoding.seed, len(prompts) * samples)
    work = [
        WorkItem(prompt, ids, sample, seeds[index * samples + sample])
        for index, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True))
        for sample in range(samples)
    ]
    shards = [work[start : start + rows_per_shard] for start in range(0, len(work), rows_per_shard)]
    meta = rollout_meta(engine, decoding, model_name, form)
    writer = TrajectoryWriter(folder, meta, _fingerprint(prompts, samples, rows_per_shard), len(shards), resume)
    summary, started = RolloutSummary(), time.monotonic()
    done = sum(len(shards[index]) for index in writer.finished)
    with progress("roll out", len(work), "answers", done=done) as bar:

        def count(_: int, generation: Generation) -> None:
            summary.add(generation)
            summary.seconds = time.monotonic() - started
            rate = summary.num_tokens / max(summary.seconds, 1e-9)
            bar.advance(1, **{"tokens/s": f"{rate:,.0f}", "TPF": f"{summary.tokens_per_forward:.2f}"})

        for index, shard in enumerate(shards):
            if index not in writer.finished:
                writer.write_shard(index, _decode(engine, shard, decoding, count))
    return summary


def rollout_meta(
    engine: Engine, decoding: Decoding, model_name: str, form: PromptConfig | None = None
) -> TrajectoryMeta:
    """The metadata of a rollout with this engine, these settings and prompts of this form."""
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


def _decode(engine: Engine, shard: Sequence[WorkItem], decoding: Decoding, on_finish: OnFinish) -> list[Trajectory]:
    prompts, seeds = [item.prompt_ids for item in shard], [item.seed for item in shard]
    generations = engine.generate(prompts, decoding, seeds=seeds, on_finish=on_finish)
    return [_trajectory(item, generation) for item, generation in zip(shard, generations, strict=True)]


def _trajectory(item: WorkItem, generation: Generation) -> Trajectory:
    return Trajectory(
        prompt_id=item.prompt.prompt_id,
        sample=item.sample,
        prompt_ids=generation.prompt_ids,
        response_ids=generation.token_ids,
        reveal_step=generation.reveal_steps,
        confidence=generation.confidences,
        num_forwards=generation.num_forwards,
        finish_reason=generation.finish_reason,
        prompt_text=item.prompt.text,
        response_text=generation.text or "",
        answer=item.prompt.answer,
        seed=item.seed,
    )


def _fingerprint(prompts: Sequence[Prompt], samples: int, rows_per_shard: int) -> str:
    """Names the work list: a resumed rollout must be cut in the same way over the same prompts."""
    request = [[[prompt.prompt_id, prompt.text, prompt.answer] for prompt in prompts], samples, rows_per_shard]
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]

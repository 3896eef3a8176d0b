"""The work list of a rollout: every response to make, cut into shards that can be done anywhere and in any order."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t3d.errors import RequestError
from t3d.noise import derive_seeds
from t3d.types import Decoding, Generation, Prompt, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from t3d.engine import Engine
    from t3d.engine.engine import OnFinish

logger = logging.getLogger(__name__)


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

    @property
    def tokens_per_second(self) -> float:
        """Tokens by wall time."""
        return self.num_tokens / max(self.seconds, 1e-9)

    def add(self, generation: Generation) -> None:
        """Count one response."""
        self.num_rows += 1
        self.num_tokens += len(generation.token_ids)
        self.num_forwards += generation.num_forwards
        self._ended(generation.finish_reason)

    def merge(self, other: RolloutSummary) -> None:
        """Count what another worker did, but for its time, which ran beside this one's."""
        self.num_rows += other.num_rows
        self.num_tokens += other.num_tokens
        self.num_forwards += other.num_forwards
        for reason, number in other.finish_reasons.items():
            self._ended(reason, number)

    def _ended(self, reason: str, number: int = 1) -> None:
        self.finish_reasons[reason] = self.finish_reasons.get(reason, 0) + number


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One response to make: which prompt, with its tokens, which sample of it, with which seed."""

    prompt: Prompt
    prompt_ids: list[int]
    sample: int
    seed: int


@dataclass(frozen=True, slots=True)
class WorkList:
    """All responses of a rollout.

    Attributes:
        shards: what belongs into each file, in order.
        fingerprint: names the list: a resumed rollout must be cut in the same way over the same prompts.
    """

    shards: list[list[WorkItem]]
    fingerprint: str

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def prompt_ids(self) -> list[list[int]]:
        """The tokens of each prompt once, in order."""
        return [item.prompt_ids for shard in self.shards for item in shard if item.sample == 0]

    def warn_of_idle(self, num_engines: int) -> None:
        """Say so if there is not a shard for each of so many engines."""
        if (idle := num_engines - len(self.shards)) > 0:
            logger.warning(
                "%d of %d engines have nothing to do: there are only %d shards; --rows-per-shard %d, in a new folder, "
                "would spread them",
                idle,
                num_engines,
                len(self.shards),
                max(1, len(self) // num_engines),
            )


def make_work_list(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    samples: int,
    rows_per_shard: int,
) -> WorkList:
    """The prompts in order, each tokenised once and with its samples, every response with a seed of its own.

    Args:
        prompts: rendered.
        tokenizer: of the model.
        seed: that the responses' seeds are derived from.
        samples: responses a prompt.
        rows_per_shard: responses a file.

    Raises:
        RequestError: no prompts, no samples or no tokenizer.
    """
    if tokenizer is None:
        raise RequestError("the model folder holds no tokenizer: save one beside the model to roll it out")
    if not prompts or samples < 1:
        raise RequestError("rollout needs at least one prompt and one sample of it")
    seeds = derive_seeds(seed, len(prompts) * samples)
    tokens = [tokenizer.encode(prompt.text, add_special_tokens=False) for prompt in prompts]
    items = [
        WorkItem(prompt, ids, sample, seeds[index * samples + sample])
        for index, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True))
        for sample in range(samples)
    ]
    shards = [items[start : start + rows_per_shard] for start in range(0, len(items), rows_per_shard)]
    return WorkList(shards, _fingerprint(prompts, samples, rows_per_shard))


def decode(engine: Engine, shard: Sequence[WorkItem], decoding: Decoding, on_finish: OnFinish) -> list[Trajectory]:
    """The rows of a shard: these depend on the shard alone, not on who decodes it or when."""
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
    request = [[[prompt.prompt_id, prompt.text, prompt.answer] for prompt in prompts], samples, rows_per_shard]
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]

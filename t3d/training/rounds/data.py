"""What a round learns from: answers rolled out, and those of them that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d import trajectories
from t3d.config import RolloutConfig
from t3d.engine.request import check_request
from t3d.engine.rules import RULES
from t3d.errors import RequestError
from t3d.models import SDARConfig
from t3d.tasks import Task, get_task, read_prompts
from t3d.types import Decoding, Prompt, Trajectory

FULL_STEP_RULE = "low_confidence_static"
ADAPTIVE_RULES = frozenset({"low_confidence_dynamic", "entropy_bounded"})
"""They may reveal more than their quota, so that T = B is not one token a step."""


def prompts_of(rollout: RolloutConfig, seed: int) -> list[Prompt]:
    """The prompts that a rollout answers, in order.

    Raises:
        RequestError: no such task, split or file, or a file that holds something else.
    """
    if rollout.prompts is not None:
        return read_prompts(rollout.prompts)[: rollout.count]
    assert rollout.task is not None
    assert rollout.count is not None
    return get_task(rollout.task).prompts(rollout.split, rollout.count, seed)


def decoding_of(rollout: RolloutConfig, block_size: int, seed: int) -> Decoding:
    """The resolved decoding settings of a rollout by a model of this block size.

    Raises:
        RequestError: no such rule, or more steps than positions in a block.
    """
    if rollout.rule not in RULES:
        raise RequestError(f"rule {rollout.rule!r} is unknown: use one of {', '.join(RULES)}")
    return Decoding(
        block_size=rollout.block_size,
        steps_per_block=rollout.steps_per_block,
        rule=rollout.rule,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        threshold=rollout.threshold,
        entropy_bound=rollout.entropy_bound,
        max_new_tokens=rollout.max_new_tokens,
        seed=seed,
    ).resolve(block_size)


def full_step_of(decoding: Decoding) -> Decoding | None:
    """The same settings at one token a step; None if resolved `decoding` does just that."""
    rule = FULL_STEP_RULE if decoding.rule in ADAPTIVE_RULES else decoding.rule
    full_step = replace(decoding, rule=rule, steps_per_block=decoding.block_size)
    return None if full_step == decoding else full_step


def check_prompts(
    prompts: Sequence[Prompt], decoding: Decoding, tokenizer: PreTrainedTokenizerBase, config: SDARConfig
) -> None:
    """Refuse what a rollout would refuse, before any model is loaded.

    Raises:
        RequestError: a prompt that cannot be decoded with these settings.
    """
    encoded = tokenizer([each.text for each in prompts], add_special_tokens=False)["input_ids"]
    for index, prompt_ids in enumerate(encoded):
        check_request(index, prompt_ids, decoding, decoding.seed, (), config)


def answers_agree(few_step_text: str, full_step_text: str, task: Task | None) -> bool:
    """Whether two responses to one prompt give the same answer.

    A task reads the answer that the full-step response gives and grades the few-step response by it; a full-step
    response without one agrees with nothing. Without a task the texts must be the same.
    """
    if task is None:
        return few_step_text.strip() == full_step_text.strip()
    answer = task.extract_answer(full_step_text)
    return answer is not None and task.grade(few_step_text, answer)


def agreeing(few_step: Iterable[Trajectory], full_step: Iterable[Trajectory], task: Task | None) -> list[Trajectory]:
    """The few-step rows that agree (`answers_agree`) with the full-step row of the same prompt and sample.

    Args:
        few_step, full_step: rows of the same work list, in its order.
        task: whose prompts they answer, if it is a task's.
    """
    kept = []
    for few, full in zip(few_step, full_step, strict=True):
        if (few.prompt_id, few.sample) != (full.prompt_id, full.sample):
            raise ValueError(f"row {few.prompt_id}/{few.sample} stands beside row {full.prompt_id}/{full.sample}")
        if answers_agree(few.response_text, full.response_text, task):
            kept.append(few)
    return kept


def figures_of(folder: Path) -> dict[str, Any]:
    """How much a trajectory folder holds: answers, tokens, TPF, and how many answers ended in which way."""
    num_tokens = num_forwards = 0
    ended_by: Counter[str] = Counter()
    for row in trajectories.read(folder):
        num_tokens += len(row.response_ids)
        num_forwards += row.num_forwards
        ended_by[row.finish_reason] += 1
    return {
        "answers": ended_by.total(),
        "tokens": num_tokens,
        "tokens_per_forward": num_tokens / max(1, num_forwards),
        "ended_by": dict(sorted(ended_by.items())),
    }

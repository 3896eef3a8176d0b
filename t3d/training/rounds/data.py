"""What a round learns from: answers rolled out, and those of them that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d import trajectories
from t3d.config import PromptConfig, RolloutConfig
from t3d.engine.request import check_request
from t3d.engine.rules import RULES
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig
from t3d.tasks import Grader, Task, get_task, take_problems
from t3d.tasks.prompts import Questions, put_questions
from t3d.tasks.sources import ALL
from t3d.types import Decoding, Problem, Prompt, Trajectory

FULL_STEP_RULE = "low_confidence_static"
ADAPTIVE_RULES = frozenset({"low_confidence_dynamic", "entropy_bounded"})
"""They may reveal more than their quota, so that T = B is not one token a step."""


def questions_of(
    rollout: RolloutConfig, asked: PromptConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Questions:
    """The questions of a rollout, put as `asked` and its task say; `seed` draws them, or the order of all of them.

    Raises:
        RequestError: no such task, split or file, a file that holds something else, or a form that cannot be.
    """
    task, split = _task_of(rollout), rollout.split if rollout.task is not None else ALL
    chooses = rollout.shuffle and rollout.count is not None and not task.is_endless
    problems = take_problems(task, split, rollout.count, seed if chooses else None, seed)
    return put_questions(task, problems, asked, tokenizer)


def grader_of(rollout: RolloutConfig) -> Grader | None:
    """What tells whether two answers agree: the task's grader; None for a file of prompts.

    Raises:
        RequestError: the task's problems cannot be graded, or not on this machine.
    """
    return _task_of(rollout).grader() if rollout.task is not None else None


def _task_of(rollout: RolloutConfig) -> Task:
    if rollout.task is not None:
        return get_task(rollout.task, rollout.data)
    return get_task("jsonl", rollout.prompts)


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
    prompts: Sequence[Prompt], decoding: Decoding, tokenizer: PreTrainedTokenizerBase, config: BlockDiffusionConfig
) -> None:
    """Refuse what a rollout would refuse, before any model is loaded.

    Raises:
        RequestError: a prompt that cannot be decoded with these settings.
    """
    encoded = tokenizer([each.text for each in prompts], add_special_tokens=False)["input_ids"]
    for index, prompt_ids in enumerate(encoded):
        check_request(index, prompt_ids, decoding, decoding.seed, (), config)


def agreement(few_step: Iterable[Trajectory], full_step: Iterable[Trajectory], grader: Grader | None) -> list[bool]:
    """Which few-step rows give the same answer as the full-step row of the same prompt and sample.

    A grader reads the answer that the full-step response gives and grades the few-step response by it; a full-step
    response without one agrees with nothing. Without a grader the texts must be the same.

    Args:
        few_step, full_step: rows of the same work list, in its order.
        grader: of the task whose prompts they answer, if they are a task's.
    """
    pairs = _pairs(few_step, full_step)
    if grader is None:
        return [few.response_text.strip() == full.response_text.strip() for few, full in pairs]
    answers = [grader.extract_answer(full.response_text) for _, full in pairs]
    verdicts = [
        grader.submit(few.response_text, Problem(few.prompt_id, few.prompt_text, answer))
        if answer is not None
        else None
        for (few, _), answer in zip(pairs, answers, strict=True)
    ]
    return [verdict is not None and verdict.result().right for verdict in verdicts]


def identity(few_step: Iterable[Trajectory], full_step: Iterable[Trajectory]) -> list[bool]:
    """Which few-step rows have the very text of the full-step row of the same prompt and sample."""
    return [few.response_text == full.response_text for few, full in _pairs(few_step, full_step)]


def _pairs(few_step: Iterable[Trajectory], full_step: Iterable[Trajectory]) -> list[tuple[Trajectory, Trajectory]]:
    pairs = list(zip(few_step, full_step, strict=True))
    for few, full in pairs:
        if (few.prompt_id, few.sample) != (full.prompt_id, full.sample):
            raise ValueError(f"row {few.prompt_id}/{few.sample} stands beside row {full.prompt_id}/{full.sample}")
    return pairs


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

"""How long the rollouts of a recipe's rounds take. One process decodes, and the others wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from t3d.bench.lengths import Lengths
from t3d.bench.roofline import model_facts
from t3d.config import Recipe, RolloutConfig
from t3d.doctor.gpus import Gpu
from t3d.doctor.measured import MEASURED_ON, seconds_per_answer_token, why_no_speed
from t3d.doctor.subject import Subject
from t3d.training.rounds.plan import PlannedRollout


@dataclass(frozen=True, slots=True)
class Rollout:
    """The answers of one round.

    Attributes:
        name: which round's, and what for.
        answers: in all, those that they are compared with and completions included; None: nobody can tell yet.
        tokens: of them.
        seconds: for all of them; None also for models unlike any that was measured.
    """

    name: str
    answers: int | None
    tokens: float | None
    seconds: float | None


def plan_rollout(
    name: str,
    config: RolloutConfig,
    num_prompts: int | None,
    compares: bool,
    mean_tokens: float,
    subject: Subject,
    gpu: Gpu,
) -> Rollout:
    """What a rollout comes to.

    Args:
        name: of it.
        config: its part of the recipe.
        num_prompts: None: nobody can tell yet.
        compares: whether the same prompts are also decoded at one token a step.
        mean_tokens: of an answer.
        subject: that answers.
        gpu: of the process that decodes.
    """
    if num_prompts is None:
        return Rollout(name, None, None, None)
    block = config.block_size or subject.config.block_size
    few_step, tokens = config.steps_per_block or block, num_prompts * config.samples * mean_tokens
    parts = [(few_step, tokens)]
    if compares and few_step < block:
        parts.append((block, tokens))
    if config.completed_by is not None:
        parts.append((block, tokens / 2))  # cut at a place drawn evenly
    answers, total = len(parts) * num_prompts * config.samples, sum(each for _, each in parts)
    if why_no_speed(subject.config):
        return Rollout(name, answers, total, None)
    weights = model_facts(subject.config, torch.bfloat16).layer_parameters
    # at 256 requests either may be the narrow place
    slower = max(MEASURED_ON.peak_flops / gpu.peak_flops, MEASURED_ON.bytes_per_second / gpu.bytes_per_second)
    seconds = sum(each * seconds_per_answer_token(weights, steps) for steps, each in parts) * slower
    return Rollout(name, answers, total, seconds)


def rollouts_of(
    recipe: Recipe, planned: Sequence[PlannedRollout] | None, mean_tokens: float | None, subject: Subject, gpu: Gpu
) -> list[Rollout]:
    """Of all rounds, and of what judges their students.

    Args:
        recipe: of rounds.
        planned: of each round, where its prompts could be read; None: their `count` is believed.
        mean_tokens: of an answer; None takes half of the longest.
        subject: whose shapes answer.
        gpu: of the process that decodes.
    """
    found = []
    for index, chosen in enumerate(recipe.rounds):
        config = chosen.rollout
        count = len(planned[index].questions.prompts) if planned is not None else config.count
        tokens = min(mean_tokens or config.max_new_tokens / 2, config.max_new_tokens)
        name = f"round {index + 1}"
        found.append(plan_rollout(name, config, count, chosen.keep != "all", tokens, subject, gpu))
        stop = recipe.stop_rounds
        if stop is not None and stop.rollout is not None:
            tokens = min(mean_tokens or stop.rollout.max_new_tokens / 2, stop.rollout.max_new_tokens)
            found.append(plan_rollout(f"{name}, judged", stop.rollout, stop.rollout.count, True, tokens, subject, gpu))
    return found


def lengths_of(planned: PlannedRollout, subject: Subject) -> Lengths:
    """Of a rollout's prompts, and of answers up to its longest: all lengths equally frequent."""
    assert subject.tokenizer is not None
    texts = [prompt.text for prompt in planned.questions.prompts]
    sizes = [len(ids) for ids in subject.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return Lengths((min(sizes), max(sizes)), (1, planned.config.max_new_tokens))

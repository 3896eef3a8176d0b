"""Answers: responses with their verdicts, as answers.jsonl lists them and as figures are made from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from t3d.errors import WorkError
from t3d.evaluation.diversity import majority_share, num_answers, vote_of
from t3d.evaluation.exam import Item
from t3d.evaluation.journal import Response
from t3d.evaluation.metrics import bootstrap_interval, pass_at_k, percentile, wilson_interval
from t3d.evaluation.results import SettingResult
from t3d.evaluation.settings import setting_fields
from t3d.files import write_whole
from t3d.types import Decoding, FinishReason, Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """A line of answers.jsonl.

    Attributes:
        setting: its label.
        problem_id, sample: which response.
        right, outcome, answer, detail: as in `Verdict`; a response that the engine could not finish is "not_decoded".
        reference: the problem's answer.
        response: its text.
        num_tokens, num_forwards, seconds, finish_reason: as in `Generation`.
        steps: denoising steps up to the last that revealed one of its tokens.
        surprisal: nats, as in `Response`.
    """

    setting: str
    problem_id: str
    sample: int
    right: bool
    outcome: str
    answer: str | None
    reference: str | None
    detail: str
    response: str
    num_tokens: int
    num_forwards: int
    steps: int
    seconds: float
    finish_reason: FinishReason
    surprisal: float | None


def answer_of(setting: str, item: Item, response: Response, verdict: Verdict) -> Answer:
    """The answer to an item at the setting of that label."""
    return Answer(
        setting=setting,
        problem_id=item.problem.problem_id,
        sample=item.sample,
        right=verdict.right,
        outcome=verdict.outcome,
        answer=verdict.answer,
        reference=item.problem.answer,
        detail=verdict.detail,
        response=response.text,
        num_tokens=response.num_tokens,
        num_forwards=response.num_forwards,
        steps=response.steps,
        seconds=response.seconds,
        finish_reason=response.finish_reason,
        surprisal=response.surprisal,
    )


def write_answers(answers: Sequence[Answer], file: Path) -> None:
    """Write a line each; the file appears whole or not at all.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        write_whole(file, "".join(json.dumps(asdict(each)) + "\n" for each in answers))
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error


def figures_of(decoding: Decoding, answers: Sequence[Answer], num_samples: int, seconds: float) -> SettingResult:
    """The figures of one setting.

    Args:
        decoding: resolved.
        answers: problem by problem, each with its samples; at least one problem.
        num_samples: answers to each problem.
        seconds: wall time of decoding.
    """
    num_right, num_tokens = sum(each.right for each in answers), sum(each.num_tokens for each in answers)
    num_forwards, num_steps = sum(each.num_forwards for each in answers), sum(each.steps for each in answers)
    problems = [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]
    num_right_of_problem = [sum(each.right for each in own) for own in problems]
    latencies = [each.seconds for each in answers]
    return SettingResult(
        **setting_fields(decoding),
        num_problems=len(problems),
        num_samples=num_samples,
        num_right=num_right,
        accuracy=num_right / len(answers),
        interval=_interval([right / num_samples for right in num_right_of_problem]),
        pass_at_k={
            k: fmean(pass_at_k(num_samples, right, k) for right in num_right_of_problem)
            for k in _powers_of_two(num_samples)
        },
        verdicts=dict(Counter(each.outcome for each in answers)),
        num_tokens=num_tokens,
        num_forwards=num_forwards,
        tokens_per_forward=num_tokens / max(1, num_forwards),
        mean_steps=num_steps / len(answers),
        measured_tokens_per_step=num_tokens / max(1, num_steps),
        seconds=seconds,
        tokens_per_second=num_tokens / max(seconds, 1e-9),
        latency_median=percentile(latencies, 0.5),
        latency_p95=percentile(latencies, 0.95),
        mean_length=num_tokens / len(answers),
        finish_reasons=dict(Counter(each.finish_reason for each in answers)),
        nats_per_token=_nats_per_token(answers),
        right_answers="".join("01"[each.right] for own in sorted(problems, key=_problem_id) for each in own),
        **(_diversity(problems, num_samples) if num_samples > 1 else {}),
    )


def _diversity(problems: Sequence[Sequence[Answer]], num_samples: int) -> dict[str, Any]:
    """Fields of a `SettingResult` that several samples of each problem give; programs have no answers to count."""
    wordings = fmean(len({each.response for each in own}) for own in problems) / num_samples
    if any(own[0].reference is None for own in problems):
        return {"distinct_responses": wordings}
    votes = [[vote_of(each.answer, each.right) for each in own] for own in problems]
    shares = [majority_share(own) for own in votes]
    return {
        "distinct_responses": wordings,
        "majority_accuracy": fmean(shares),
        "majority_interval": _interval(shares),
        "distinct_answers": fmean(map(num_answers, votes)),
    }


def _nats_per_token(answers: Sequence[Answer]) -> float | None:
    decoded = [each for each in answers if each.surprisal is not None]
    num_tokens = sum(each.num_tokens for each in decoded)
    return math.fsum(each.surprisal or 0.0 for each in decoded) / num_tokens if num_tokens else None


def _problem_id(samples: Sequence[Answer]) -> str:
    return samples[0].problem_id


def _interval(shares: Sequence[float]) -> tuple[float, float]:
    """Of a mean over problems; Wilson's where each is all right or all wrong, since it behaves at 0 and 1."""
    if set(shares) <= {0.0, 1.0}:
        return wilson_interval(round(sum(shares)), len(shares))
    return bootstrap_interval(shares)


def _powers_of_two(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length())]

"""Run a benchmark at several decoding settings."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t3d.engine import Engine
from t3d.errors import RequestError, WorkError
from t3d.evaluation.benchmarks import Benchmark
from t3d.evaluation.metrics import wilson_interval
from t3d.evaluation.results import EvalResult, SettingResult
from t3d.models import model_fingerprint
from t3d.progress import Reporter, progress
from t3d.types import Decoding, Generation, Prompt
from t3d.versions import versions

DYNAMIC = "low_confidence_dynamic"


def settings_to_try(
    tokens_per_step: Sequence[int], thresholds: Sequence[float], base: Decoding, model_block_size: int
) -> list[Decoding]:
    """Decoding settings: the base rule at each number of tokens per step, the dynamic rule at each threshold.

    Raises:
        RequestError: a number of tokens per step that does not divide the block, or a threshold out of range.
    """
    block_size = base.block_size or model_block_size
    settings = []
    for number in tokens_per_step:
        if number < 1 or block_size % number:
            raise RequestError(f"tokens-per-step {number} does not divide the block size {block_size}")
        settings.append(replace(base, block_size=block_size, steps_per_block=block_size // number))
    for threshold in thresholds:
        settings.append(
            replace(base, block_size=block_size, steps_per_block=block_size, rule=DYNAMIC, threshold=threshold)
        )
    return settings


def label_of(decoding: Decoding) -> str:
    """How tables name a setting."""
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    if decoding.rule == DYNAMIC:
        return f"dynamic > {decoding.threshold:g}"
    number = decoding.block_size / decoding.steps_per_block
    label = f"{number:g} token{'s' if number != 1 else ''}/step"
    return label if decoding.rule == "low_confidence_static" else f"{label}, {decoding.rule}"


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    settings: Sequence[Decoding],
    *,
    name: str,
    model: str,
    limit: int | None = None,
    seed: int = 0,
    answers_file: Path | None = None,
    reporter: Reporter | None = None,
) -> EvalResult:
    """Accuracy, parallelism and speed of one model at each setting.

    Args:
        engine: with a tokenizer.
        benchmark: the problems and their grader.
        settings: resolved decoding settings (`settings_to_try`).
        name: how reports call the model; model: where it came from.
        limit: problems; None takes the benchmark's default.
        seed: which problems of an endless benchmark.
        answers_file: every answer as a line of JSON, for looking at.
        reporter: is told of finished answers; None shows a bar of its own.

    Raises:
        RequestError: a prompt that cannot be decoded at one of the settings, before anything runs.
        WorkError: the disk refuses.
    """
    prompts = benchmark.prompts(limit, seed)
    prompt_ids = engine.encode([prompt.text for prompt in prompts])
    for decoding in settings:
        engine.check(prompt_ids, decoding)
    if answers_file is not None:
        _append_answers(answers_file, "", (), (), ())  # a folder that cannot be written shows now, not after an hour
    results = []
    total = len(prompts) * len(settings)
    shown = progress(f"evaluate {name}", total, "answers") if reporter is None else contextlib.nullcontext(reporter)
    with shown as bar:
        for decoding in settings:
            started = time.monotonic()
            generations = engine.generate(prompt_ids, decoding, on_finish=lambda _, __: bar.advance(1))
            seconds = time.monotonic() - started
            verdicts = [
                benchmark.grade(generation.text or "", prompt.answer or "")
                for generation, prompt in zip(generations, prompts, strict=True)
            ]
            results.append(_summary(decoding, generations, verdicts, seconds))
            bar.advance(0, **{results[-1].label: f"{100 * results[-1].accuracy:.1f}%"})
            if answers_file is not None:
                _append_answers(answers_file, results[-1].label, prompts, generations, verdicts)
    return EvalResult(
        name=name,
        model=model,
        model_fingerprint=model_fingerprint(engine.model),
        benchmark=benchmark.name,
        seed=seed,
        device=str(engine.model.device),
        versions=versions(),
        settings=results,
    )


def _summary(
    decoding: Decoding, generations: Sequence[Generation], verdicts: Sequence[bool], seconds: float
) -> SettingResult:
    num_tokens = sum(len(generation.token_ids) for generation in generations)
    num_forwards = sum(generation.num_forwards for generation in generations)
    dynamic = decoding.rule == DYNAMIC
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    return SettingResult(
        label=label_of(decoding),
        tokens_per_step=None if dynamic else decoding.block_size / decoding.steps_per_block,
        rule=decoding.rule,
        threshold=decoding.threshold if dynamic else None,
        block_size=decoding.block_size,
        steps_per_block=decoding.steps_per_block,
        temperature=decoding.temperature,
        num_problems=len(verdicts),
        num_right=sum(verdicts),
        accuracy=sum(verdicts) / len(verdicts),
        interval=wilson_interval(sum(verdicts), len(verdicts)),
        tokens_per_forward=num_tokens / max(1, num_forwards),
        tokens_per_second=num_tokens / max(seconds, 1e-9),
        mean_length=num_tokens / len(generations),
        finish_reasons=dict(Counter(generation.finish_reason for generation in generations)),
    )


def _append_answers(
    file: Path, label: str, prompts: Sequence[Prompt], generations: Sequence[Generation], verdicts: Sequence[bool]
) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            for prompt, generation, right in zip(prompts, generations, verdicts, strict=True):
                row = {
                    "setting": label,
                    "prompt_id": prompt.prompt_id,
                    "right": right,
                    "answer": prompt.answer,
                    "response": generation.text,
                    "num_tokens": len(generation.token_ids),
                    "num_forwards": generation.num_forwards,
                    "finish_reason": generation.finish_reason,
                }
                lines.write(json.dumps(row) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error

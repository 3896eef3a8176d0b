"""Students at work: validation, which decides the learning rate, and the test, which tables show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t3d.config import PromptConfig
from t3d.config.study import TestingConfig, TuningConfig
from t3d.engine import Engine
from t3d.evaluation import EvalResult, evaluate, get_benchmark, settings_to_try
from t3d.evaluation.benchmarks import Benchmark
from t3d.evaluation.results import ANSWERS_FILE
from t3d.progress import Silent
from t3d.study.rows import Row, SettingRow, pack_bits
from t3d.types import Decoding


def benchmark_of(test: TestingConfig, split: str | None = None) -> Benchmark:
    """The benchmark that is tested on; or another split of it.

    Raises:
        RequestError: there is none.
    """
    benchmark = get_benchmark(test.benchmark, test.data)
    chosen = split or test.split
    return benchmark if chosen is None else replace(benchmark, split=chosen)


def settings_of(
    test: TestingConfig, numbers: Sequence[int], thresholds: Sequence[float], block_size: int
) -> list[Decoding]:
    """Resolved decoding settings.

    Raises:
        RequestError: tokens per step that do not divide the block, or a threshold out of range.
    """
    longest = test.max_new_tokens or get_benchmark(test.benchmark, test.data).task.max_new_tokens
    base = Decoding(block_size=test.block_size, max_new_tokens=longest)
    return settings_to_try(numbers, thresholds, base, block_size)


def validated(engine: Engine, row: Row, tune: TuningConfig, test: TestingConfig, prompt: PromptConfig) -> Row:
    """The row with its student's accuracies on the problems that decide the learning rate.

    Args:
        engine: of the student.
        row: so far.
        tune, test: the study's.
        prompt: how questions are put.
    """
    result = evaluate(
        engine,
        benchmark_of(test, tune.split),
        settings_of(test, tune.tokens_per_step, (), engine.model.config.block_size),
        name=row.name,
        model=row.name,
        limit=tune.limit,
        prompt=prompt,
        reporter=Silent(),
    )
    pairs = zip(tune.tokens_per_step, result.settings, strict=True)
    return row.model_copy(update={"validation": {number: setting.accuracy for number, setting in pairs}})


def tested(engine: Engine, row: Row, test: TestingConfig, prompt: PromptConfig, *, model: str, out: Path) -> Row:
    """The row with its student's figures on the test problems.

    Args:
        engine: of the student, or of the teacher.
        row: so far.
        test: the study's.
        prompt: how questions are put.
        model: what results call it.
        out: folder of answers and figures; what is answered there is not answered again.
    """
    result = evaluate(
        engine,
        benchmark_of(test),
        settings_of(test, test.tokens_per_step, test.thresholds, engine.model.config.block_size),
        name=row.name,
        model=model,
        limit=test.limit,
        prompt=prompt,
        out=out,
        resume=True,
    )
    found = {"settings": _setting_rows(result, out / ANSWERS_FILE), "data_fingerprint": result.data_fingerprint}
    return row.model_copy(update=found)


def _setting_rows(result: EvalResult, answers: Path) -> tuple[SettingRow, ...]:
    right = _right_of_settings(answers)
    return tuple(
        SettingRow(
            label=each.label,
            tokens_per_step=each.tokens_per_step,
            threshold=each.threshold,
            num_problems=each.num_problems,
            right=pack_bits(right[each.label]),
            tokens_per_forward=each.tokens_per_forward,
            mean_length=each.mean_length,
        )
        for each in result.settings
    )


def _right_of_settings(answers: Path) -> dict[str, list[bool]]:
    """Setting's label -> which problems were answered right, in their order."""
    right: dict[str, list[bool]] = {}
    for line in answers.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        right.setdefault(answer["setting"], []).append(answer["right"])
    return right

"""Which results may stand side by side: read from files, refused where they are not of the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from t3d.errors import RequestError
from t3d.evaluation.report.measurements import Measurement, measurements_of
from t3d.evaluation.results import RESULT_FILE, EvalResult, read_result
from t3d.evaluation.settings import SETTING_FIELDS


def read_results(paths: Sequence[Path]) -> dict[str, EvalResult]:
    """File -> its result, for files and for folders with a result.json in them or anywhere below.

    Raises:
        RequestError: nothing there, or not a result of `t3d eval`.
    """
    return {str(file): read_result(file) for path in paths for file in _result_files(path)}


def _result_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob(RESULT_FILE))
    if not files:
        raise RequestError(f"result {path}: no {RESULT_FILE} in this folder; name the --out of a t3d eval")
    return files


def comparable(results: Mapping[str, EvalResult]) -> list[Measurement]:
    """The measurements of results that may stand side by side.

    Args:
        results: what a refusal calls a result (its file) -> the result.

    Raises:
        RequestError: a name that stands for two models, results on one benchmark that differ in data, prompts, grader
            or samples, or a setting that was measured twice.
    """
    for (file, result), (other_file, other) in combinations(results.items(), 2):
        _require_one_model_a_name(file, result, other_file, other)
        _require_same_questions(file, result, other_file, other)
    _require_new_settings(results)
    return measurements_of(results.values())


def _require_one_model_a_name(file: str, result: EvalResult, other_file: str, other: EvalResult) -> None:
    if result.name == other.name and result.model_fingerprint != other.model_fingerprint:
        raise RequestError(
            f"{file} and {other_file} call two models {result.name!r} (weights {result.model_fingerprint} / "
            f"{other.model_fingerprint}): evaluate one of them under another --name"
        )


def _require_same_questions(file: str, result: EvalResult, other_file: str, other: EvalResult) -> None:
    differences = _differences(result, other) if result.benchmark == other.benchmark else []
    if differences:
        raise RequestError(
            f"{file} ({result.name}) and {other_file} ({other.name}) do not compare on {result.benchmark}: "
            f"they differ in {', '.join(differences)}; evaluate both in the same way"
        )


def _require_new_settings(results: Mapping[str, EvalResult]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for file, result in results.items():
        for setting in result.settings:
            key = (result.name, result.benchmark, *(getattr(setting, name) for name in SETTING_FIELDS))
            if key in seen:
                raise RequestError(
                    f"{seen[key]} and {file} both measure {result.name!r} on {result.benchmark} at {setting.label}: "
                    f"leave one out, or evaluate it under another --name"
                )
            seen[key] = file


def _differences(one: EvalResult, other: EvalResult) -> list[str]:
    """What of two results on one benchmark does not agree, each with both values."""
    same_data = one.data_fingerprint == other.data_fingerprint
    values = {
        "data": (_data(one), _data(other)),
        "prompts": (_prompts(one, same_data), _prompts(other, same_data)),
        "grader": (one.grader, other.grader),
        "samples": (_samples(one), _samples(other)),
    }
    return [f"{what} ({value} / {another})" for what, (value, another) in values.items() if value != another]


def _data(result: EvalResult) -> str:
    return f"{result.settings[0].num_problems:,} problems {result.data_fingerprint}"


def _prompts(result: EvalResult, same_data: bool) -> str:
    """The form, and over the same problems also the prompts themselves: over other ones these differ anyway."""
    given = result.prompt.model_dump(exclude_defaults=True)
    form = ", ".join(f"{name} {value!r}" for name, value in given.items()) or "default form"
    return f"{form}, {result.prompt_fingerprint}" if same_data else form


def _samples(result: EvalResult) -> str:
    return ", ".join(str(each) for each in sorted({setting.num_samples for setting in result.settings}))

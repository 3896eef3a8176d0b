"""Measurements: what all tables, files and plots of results are made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from t3d.evaluation.results import EvalResult, SettingResult

Key = TypeVar("Key")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One method on one benchmark at one decoding setting.

    Attributes:
        result: the method's result on the benchmark.
        setting: one of its settings.
        series: names the row or line that it belongs to: the method, with what sets its decoding apart from others' on
            the same benchmark, such as "student, block 8".
    """

    result: EvalResult
    setting: SettingResult
    series: str

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.result.benchmark

    @property
    def is_dynamic(self) -> bool:
        """Whether the rule decides by itself how many tokens a step reveals."""
        return _is_dynamic(self.setting)

    @property
    def percent(self) -> float:
        """Accuracy, 0 .. 100."""
        return 100 * self.setting.accuracy

    def record(self) -> dict[str, Any]:
        """All figures, flat and unrounded: interval.low and interval.high, counts as verdicts.wrong and so on."""
        flat: dict[str, Any] = {"method": self.result.name, "series": self.series}
        flat |= self.result.model_dump(exclude={"schema_version", "name", "settings", "prompt", "versions", "command"})
        for name, value in self.setting.model_dump(exclude={"right_answers"}).items():
            if name.endswith("interval"):
                value = dict(zip(("low", "high"), value or (None, None), strict=True))
            flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        return flat


def measurements_of(results: Iterable[EvalResult]) -> list[Measurement]:
    """A measurement a setting, in the order of the results."""
    pairs = [(result, setting) for result in results for setting in result.settings]
    words = defaultdict(set)
    for result, setting in pairs:
        for fact, word in _decoding_words(setting).items():
            words[(result.benchmark, _is_dynamic(setting), fact)].add(word)
    varied = {(is_dynamic, fact) for (_, is_dynamic, fact), different in words.items() if len(different) > 1}
    return [Measurement(result, setting, _series(result.name, setting, varied)) for result, setting in pairs]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Key -> its items, keys and items in order of appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def benchmarks_of(measurements: Iterable[Measurement]) -> list[str]:
    """Their benchmarks, in order of appearance."""
    return list(dict.fromkeys(each.benchmark for each in measurements))


def _is_dynamic(setting: SettingResult) -> bool:
    return setting.tokens_per_step is None


def _decoding_words(setting: SettingResult) -> dict[str, str]:
    """How a setting decodes, beside tokens per step, threshold and entropy bound, which tables show anyway."""
    words = {
        "rule": setting.rule,
        "block_size": f"block {setting.block_size}",
        "temperature": f"temperature {setting.temperature:g}",
        "top_k": f"top-k {setting.top_k}",
        "top_p": f"top-p {setting.top_p:g}",
        "max_new_tokens": f"at most {setting.max_new_tokens} tokens",
    }
    if _is_dynamic(setting):
        words["quota"] = f"at least {setting.block_size / setting.steps_per_block:g} a step"
    return words


def _series(name: str, setting: SettingResult, varied: set[tuple[bool, str]]) -> str:
    told = [word for fact, word in _decoding_words(setting).items() if (_is_dynamic(setting), fact) in varied]
    return ", ".join([name, *told])

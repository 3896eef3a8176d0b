"""Accuracy against parallelism: run a benchmark at several decoding settings, report with everything counted."""

from t3d.evaluation.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from t3d.evaluation.results import EvalResult, SettingResult, read_result, write_result
from t3d.evaluation.run import evaluate, settings_to_try

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "EvalResult",
    "SettingResult",
    "evaluate",
    "get_benchmark",
    "read_result",
    "settings_to_try",
    "write_result",
]

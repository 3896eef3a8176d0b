"""Accuracy against parallelism: run a benchmark at several decoding settings, report with everything counted.

`run` is the story: an `exam` of a benchmark's problems, at each of the `settings` decoded and graded (`marking`) into a
`journal` on disk, from which come `answers` and their figures (`metrics`, `diversity`, `results`). `report` is for
people.
"""

from typing import TYPE_CHECKING, Any

from t3d.evaluation.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from t3d.evaluation.identity import require_unused
from t3d.evaluation.results import EvalResult, SettingResult, read_result, write_result
from t3d.evaluation.settings import label_of, settings_to_try

if TYPE_CHECKING:
    from t3d.evaluation.exam import prepare
    from t3d.evaluation.run import evaluate, take_exam

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "EvalResult",
    "SettingResult",
    "evaluate",
    "get_benchmark",
    "label_of",
    "prepare",
    "read_result",
    "require_unused",
    "settings_to_try",
    "take_exam",
    "write_result",
]


def __getattr__(name: str) -> Any:
    """What runs an engine, on first use: it imports torch, and `t3d compare` does not need it."""
    if name in ("evaluate", "prepare", "take_exam"):
        from t3d.evaluation import run

        return getattr(run, name)
    raise AttributeError(f"module 't3d.evaluation' has no attribute {name!r}")

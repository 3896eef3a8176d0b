"""The harness' own command line, with our model in its registry, and with a failure where it loses its results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lm_eval import loggers
from lm_eval.__main__ import cli_evaluate

from t3d.errors import WorkError
from t3d.interop.lm_eval.saving import CheckedTracker


def run(arguments: Sequence[str]) -> None:
    """Do what `lm_eval ARGUMENTS` does, `--model t3d` included.

    Raises:
        SystemExit: help was asked for, or an argument is unknown.
        RequestError: what `t3d` is asked for is wrong, or nothing can be written where results shall go.
        WorkError: results were printed, and could not be written.
        Exception: the harness fails in its own way.
    """
    ours = sys.argv
    sys.argv = ["lm_eval", *arguments]  # where the harness reads them, and changes them
    try:
        with _checked_saving() as lost:
            cli_evaluate()
    finally:
        sys.argv = ours
    if lost:
        raise WorkError(f"lm_eval: not written: {', '.join(lost)}; figures are above, --verbosity INFO says why")


@contextmanager
def _checked_saving() -> Iterator[list[str]]:
    """Inside, the harness saves through `CheckedTracker`; gives the list that gets what could not be written."""
    own = loggers.EvaluationTracker
    lost: list[str] = []
    loggers.EvaluationTracker = partial(CheckedTracker, lost)
    try:
        yield lost
    finally:
        loggers.EvaluationTracker = own

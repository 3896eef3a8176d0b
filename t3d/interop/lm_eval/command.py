"""The harness' own command line, with our model in its registry."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lm_eval.__main__ import cli_evaluate


def run(arguments: Sequence[str]) -> None:
    """Do what `lm_eval ARGUMENTS` does, `--model t3d` included.

    Raises:
        SystemExit: help was asked for, or an argument is unknown.
        RequestError: what `t3d` is asked for is wrong.
        Exception: the harness fails in its own way.
    """
    ours = sys.argv
    sys.argv = ["lm_eval", *arguments]  # where the harness reads them, and changes them
    try:
        cli_evaluate()
    finally:
        sys.argv = ours

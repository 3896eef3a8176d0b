"""Commands that hand over to other programs."""

from __future__ import annotations

import typer

from t3d.errors import RequestError, WorkError

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Context settings of a command whose arguments, `--help` included, are another program's."""


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness on its generation tasks: `lm_eval` that knows `--model t3d`."""
    from t3d.interop.lm_eval.command import run

    try:
        run(context.args)
    except SystemExit as ended:
        raise typer.Exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None)) from ended
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("a run with --use_cache FILE goes on where it stopped") from interrupt
    except RequestError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError, ImportError) as error:  # how the harness refuses
        raise WorkError(f"lm_eval: {error} (--debug shows where)") from error

"""The command line. Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

import t3d
from t3d import cli_completion as completion
from t3d.cli_bench import app as bench_app
from t3d.cli_compare import compare
from t3d.cli_convert import app as convert_app
from t3d.cli_doctor import doctor
from t3d.cli_eval import evaluate
from t3d.cli_interop import PASS_THROUGH, lm_eval
from t3d.cli_options import (
    BlockOption,
    DeviceOption,
    DtypeOption,
    EntropyOption,
    MaxTokensOption,
    ModelOption,
    RuleOption,
    SeedOption,
    StepsOption,
    TemperatureOption,
    ThresholdOption,
    TopKOption,
    TopPOption,
    check_new_folder,
    decoding_of,
    make_folder,
)
from t3d.cli_publish import export, push
from t3d.cli_rollout import rollout
from t3d.cli_serve import serve
from t3d.cli_study import study, study_report
from t3d.cli_view import view
from t3d.credentials import Formatter, print_traceback, without_secrets
from t3d.errors import RequestError, WorkError, tell

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(bench_app, name="bench")
app.add_typer(convert_app, name="convert")
app.command()(rollout)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(doctor)
app.command()(export)
app.command()(push)
app.command()(serve)
app.command()(study)
app.command()(study_report)
app.command()(view)
app.command("lm-eval", context_settings=PASS_THROUGH)(lm_eval)


COMPLETING = "_T3D_COMPLETE"
"""The variable by which a shell asks what may come next."""


@app.callback(invoke_without_command=True)
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Few-step decoding of block-diffusion language models by trajectory self-distillation."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("t3d: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    if version:
        print(t3d.__version__)
        raise typer.Exit


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Argument(help="Questions to answer.")],
    model: ModelOption = "story-mini",
    block_size: BlockOption = None,
    steps_per_block: StepsOption = None,
    rule: RuleOption = "low_confidence_static",
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    threshold: ThresholdOption = 0.9,
    entropy_bound: EntropyOption = 0.5,
    max_new_tokens: MaxTokensOption = 256,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Answer questions and say what it cost."""
    decoding = decoding_of(
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound, max_new_tokens, seed
    )
    from t3d.config import PromptConfig
    from t3d.engine import Engine
    from t3d.tasks.prompts import render, resolve_form
    from t3d.types import Problem

    engine = Engine.from_pretrained(model, dtype=dtype, device=device)
    form = resolve_form(PromptConfig(), PromptConfig(), engine.tokenizer)
    prompts = [render(Problem(str(place), text), form, engine.tokenizer).text for place, text in enumerate(prompt)]
    for result in engine.generate_text(prompts, decoding):
        print((result.text or "").strip())
        length, forwards = len(result.token_ids), result.num_forwards
        print(
            f"[{length} tokens, {forwards} forwards, TPF {length / max(1, forwards):.2f}, {result.finish_reason}]",
            file=sys.stderr,
        )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, see recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, for example optim.lr=1e-4.", autocompletion=completion.recipe_keys),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in out.")] = False,
) -> None:
    """Train a student (or a teacher) as a recipe says."""
    from t3d.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())  # before the slow imports: a typing error shows at once
    from t3d.training import run_recipe
    from t3d.training.run.folder import describe_outcome

    run_recipe(loaded, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(describe_outcome(Path(loaded.out)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report, plot, trajectories and student.")] = Path("t3d-demo"),
    seed: SeedOption = 0,
) -> None:
    """See few-step decoding break and distillation repair it: minutes on two CPU cores."""
    from t3d.demo import run_demo

    check_new_folder(out)
    make_folder(out)
    run_demo(out, seed)


def main() -> None:
    """Run the command line and exit with its code."""
    _open_closed_streams()
    sys.excepthook = print_traceback
    if COMPLETING in os.environ:
        app(prog_name="t3d")  # answers, and exits
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        _let_go_of_unwritten(stream)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code and writes at most one line about a failure to stderr."""
    debug = "--debug" in arguments
    if debug:  # allowed anywhere
        arguments = ["--debug", *(each for each in arguments if each != "--debug")]
    try:
        return _invoke(arguments)
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        told = str(interrupt) or "what is finished is on disk (rollout, train and eval go on with --resume)"
        tell(f"t3d: interrupted; {told}")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `t3d eval ... | head`
        return 1
    except Exception as error:
        if debug:
            raise
        code, message = _judge(error)
        tell("t3d: " + " ".join(without_secrets(message).split()))
        return code


def _invoke(arguments: list[str]) -> int:
    """Run a command until what it printed is written; its exit code."""
    command = typer.main.get_command(app)
    code = 0
    try:
        with command.make_context("t3d", arguments or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as ended:  # --help, --version
        code = ended.exit_code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkError(f"standard output: {error.strerror}; what is in files is whole") from error
    return code


def _open_closed_streams() -> None:
    """Open what was started closed (`2>&-`), or the next file would get its number, and what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")


def _let_go_of_unwritten(stream: TextIO) -> None:
    """What a full disk or a gone reader did not take would make Python's exit code its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _judge(error: Exception) -> tuple[int, str]:
    """Exit code and message of a failure."""
    if isinstance(error, RequestError):
        return 2, str(error)
    if isinstance(error, WorkError):
        return 1, str(error)
    if hasattr(error, "format_message"):  # the command-line library's own errors, whichever click it carries
        return 2, f"{error.format_message()} (t3d COMMAND --help shows what there is)"
    if isinstance(error, _out_of_memory()):
        return 1, "the device ran out of memory; lower --batch-size or batch.tokens_per_batch"
    if isinstance(error, OSError) and error.strerror:  # no space left, read-only, ...
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror} (--debug shows where it was needed)"
    return 1, f"{type(error).__name__}: {error} (a defect; --debug shows where)"


def _out_of_memory() -> type[Exception]:
    """torch's error, without importing torch for a command that never did."""
    torch = sys.modules.get("torch")
    return torch.OutOfMemoryError if torch is not None else MemoryError


if __name__ == "__main__":
    main()

"""Results for people: a table in the terminal, one in Markdown, and the plot of accuracy against parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from t3d.errors import RequestError, WorkError
from t3d.evaluation.results import EvalResult, SettingResult

COLUMNS = ("model", "decoding", "acc. %", "95% interval", "TPF", "tokens/s", "length", "end")


def _cells(name: str, setting: SettingResult) -> list[str]:
    low, high = setting.interval
    reasons = sorted(setting.finish_reasons.items())
    ended = reasons[0][0] if len(reasons) == 1 else ", ".join(f"{reason} {count}" for reason, count in reasons)
    return [
        name,
        setting.label,
        f"{100 * setting.accuracy:.1f}",
        f"{100 * low:.1f}–{100 * high:.1f}",
        f"{setting.tokens_per_forward:.2f}",
        f"{setting.tokens_per_second:,.0f}",
        f"{setting.mean_length:.1f}",
        ended,
    ]


def result_table(results: Sequence[EvalResult]) -> Table:
    """Every setting of every model, for the terminal."""
    first = results[0]
    title = f"{first.benchmark}, {first.settings[0].num_problems:,} problems"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        is_text = column in ("model", "decoding", "end")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "end")
    for result in results:
        for setting in result.settings:
            table.add_row(*_cells(result.name, setting))
        table.add_section()
    return table


def result_markdown(results: Sequence[EvalResult]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(result.name, each)) + " |" for result in results for each in result.settings]
    return "\n".join(lines) + "\n"


def check_comparable(results: Sequence[EvalResult]) -> None:
    """Refuse to put different problems side by side.

    Raises:
        RequestError: the results are of different benchmarks, seeds or numbers of problems.
    """
    kinds = {(each.benchmark, each.seed, each.settings[0].num_problems) for each in results if each.settings}
    if len(kinds) > 1:
        shown = "; ".join(f"{name}, seed {seed}, {count} problems" for name, seed, count in sorted(kinds))
        raise RequestError(f"these results are of different problems ({shown}): evaluate the models on the same ones")


def plot_accuracy(results: Sequence[EvalResult], file: Path) -> None:
    """Accuracy against tokens per forward: a line a model, its 95% intervals, hollow marks for the dynamic rule.

    Raises:
        WorkError: the picture cannot be written.
    """
    import matplotlib as mpl  # slow to import, and only a picture needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for index, result in enumerate(results):
        colour = f"C{index}"
        static = sorted((each for each in result.settings if each.tokens_per_step), key=_parallelism)
        dynamic = [each for each in result.settings if not each.tokens_per_step]
        _draw(axes, static, colour, label=result.name, line="-", filled=True)
        _draw(axes, dynamic, colour, label=f"{result.name}, dynamic rule", line="", filled=False)
    axes.set_xlabel("tokens per forward (all forwards counted)")
    axes.set_ylabel("accuracy, % (bars: 95% interval)")
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    axes.set_title(f"{results[0].benchmark}: accuracy against parallelism")
    axes.legend()
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _parallelism(setting: SettingResult) -> float:
    return setting.tokens_per_forward


def _draw(axes, settings: Sequence[SettingResult], colour: str, *, label: str, line: str, filled: bool) -> None:  # type: ignore[no-untyped-def]
    if not settings:
        return
    accuracy = [100 * each.accuracy for each in settings]
    below = [100 * (each.accuracy - each.interval[0]) for each in settings]
    above = [100 * (each.interval[1] - each.accuracy) for each in settings]
    axes.errorbar(
        [each.tokens_per_forward for each in settings],
        accuracy,
        yerr=[[max(0.0, value) for value in below], [max(0.0, value) for value in above]],
        fmt=f"o{line}",
        color=colour,
        markerfacecolor=colour if filled else "white",
        capsize=3,
        label=label,
    )

"""The demo: a teacher that few-step decoding breaks, and a student of its own answers that it no longer breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from t3d.config import PromptConfig, Recipe, make_recipe
from t3d.engine import Engine
from t3d.evaluation import EvalResult, SettingResult, evaluate, get_benchmark, settings_to_try, write_result
from t3d.evaluation.report import ResultTable, plot_accuracy, result_markdown
from t3d.evaluation.report.layout import Cell, Column
from t3d.files import write_whole
from t3d.tasks import get_task
from t3d.tasks.prompts import Questions, put_questions
from t3d.training.rounds import RoundsRun
from t3d.training.rounds.judging import accuracy_of
from t3d.training.rounds.plan import Round
from t3d.training.rounds.record import RoundsFile
from t3d.types import Decoding, Generation, Problem

TEACHER = "story-mini"
NUM_PROBLEMS = 300
NUM_WATCHED = 100
"""Validation problems that each round's student is tried on."""
NUM_SHOWN_FROM = 16
"""Test questions among which the one that is shown side by side is looked for."""
TOKENS_PER_STEP = (1, 2, 4)
DECODING = Decoding(max_new_tokens=160)

ROUNDS = (4, 2, 1, 1)
"""Steps per block of the answers that each round learns from."""
NUM_ROLLOUTS = 512
"""Answers a round."""
TEACHER_SHARE = 0.25
"""Of the examples from round 2 on: answers of round 1, which keep full-step decoding as it was."""
OBJECTIVE = {"name": "trajectory_ce"}
OPTIM = {"steps": 40, "examples_per_step": 32, "lr": 5e-4, "warmup_steps": 5}
CORRUPTION = {"ratio_power": 2.0}
"""More half-revealed blocks than the paper's 8: full-step decoding passes through them, and keeps its quality."""


def run_demo(out: Path, seed: int = 0) -> None:
    """Run everything on the CPU and leave report, plot, rounds and student in `out`, an empty folder."""
    console, started = Console(), time.monotonic()
    training = out / "training"

    with _stage(console, f"1. the teacher {TEACHER} at {_steps()} tokens per step"):
        teacher = Engine.from_pretrained(TEACHER, device="cpu")
        before = _evaluate(teacher, "teacher", TEACHER)

    with _stage(console, f"2. a student learns in {len(ROUNDS)} rounds: {_settings()}"):
        rounds = _train(make_recipe(demo_recipe(training, seed)))

    with _stage(console, "3. the student on the same problems"):
        student = Engine.from_pretrained(training / "model", device="cpu")
        after = _evaluate(student, "student", str(training / "model"))

    console.print(rounds)
    console.print(_before_after(before, after))
    console.print(_side_by_side(teacher, student))
    _write_report(out, [before, after], rounds)
    console.print(f"{time.monotonic() - started:.0f} s in all. Written to [bold]{out}[/]:")
    for name, what in _contents(training.name):
        console.print(f"  {name:<20} {what}")


def demo_recipe(out: Path, seed: int) -> dict[str, object]:
    """The student's recipe: the settings that served best at this size (docs/negative-results.md has the others)."""
    shared = {
        "rollout": {"task": "story", "count": NUM_ROLLOUTS, "max_new_tokens": DECODING.max_new_tokens},
        "keep": "agreeing",
        "agree_with": "teacher",
        "teacher_share": TEACHER_SHARE,
    }
    return {
        "model": {"source": TEACHER},
        "objective": OBJECTIVE,
        "corruption": CORRUPTION,
        "optim": OPTIM,
        "every_round": shared,
        "rounds": [{"rollout": {"steps_per_block": steps}} for steps in ROUNDS],
        "evaluation": {
            "every_steps": OPTIM["steps"],
            "at_start": False,
            "limit": NUM_WATCHED,
            "tokens_per_step": TOKENS_PER_STEP[-1:],
            "max_new_tokens": DECODING.max_new_tokens,
        },
        "device": "cpu",
        "seed": seed,
        "out": str(out),
    }


def _train(recipe: Recipe) -> ResultTable:
    """Run the rounds; returns what happened in each."""
    run = RoundsRun(recipe)
    run.run()
    finished, fastest = RoundsFile(recipe.out), TOKENS_PER_STEP[-1]
    return ResultTable(
        name="rounds",
        title="What each round learned from, and what came of it",
        columns=[Column("round"), Column("answers of"), Column("tokens per step"), Column("kept"), Column("accuracy")],
        groups=[[list(map(Cell, _outcome(run, each, finished))) for each in run.rounds]],
        notes=[
            "Kept are answers that agree with the teacher's at 1 token per step; no labels are looked at. "
            f"From round 2 on {TEACHER_SHARE:.0%} of the examples are the teacher's answers of round 1.",
            f"Accuracy in %, of the round's student on {NUM_WATCHED} validation problems at {fastest} tokens per step.",
        ],
        records=[],
    )


def _outcome(run: RoundsRun, each: Round, finished: RoundsFile) -> Iterator[str]:
    """A round's row."""
    decoding = each.rollout.few_step
    yield str(each.number)
    yield "teacher" if each.rollout.model == TEACHER else "student"
    yield f"{(decoding.block_size or 0) // (decoding.steps_per_block or 1)}"
    yield f"{finished[each.data]['answers']:,} of {finished[each.rollout.answers]['answers']:,}"
    yield f"{100 * accuracy_of(run.out / each.training, of_best=False):.0f}"


def _evaluate(engine: Engine, name: str, model: str) -> EvalResult:
    settings = settings_to_try(TOKENS_PER_STEP, (), DECODING, engine.model.config.block_size)
    return evaluate(engine, get_benchmark("story"), settings, name=name, model=model, limit=NUM_PROBLEMS)


def _questions(engine: Engine, split: str, count: int, seed: int) -> Questions:
    task = get_task("story")
    return put_questions(task, task.problems(split, count, seed), PromptConfig(), engine.tokenizer)


def _before_after(before: EvalResult, after: EvalResult) -> Table:
    count = before.settings[0].num_problems
    table = Table(title=f"accuracy on {count} test problems, % (95% interval)")
    for column in ("tokens per step", "TPF", "teacher", "student", "change"):
        table.add_column(column, justify="right")
    for old, new in zip(before.settings, after.settings, strict=True):
        change = 100 * (new.accuracy - old.accuracy)
        table.add_row(
            f"{old.tokens_per_step:g}",
            f"{new.tokens_per_forward:.2f}",
            *map(_accuracy, (old, new)),
            f"{change:+.1f}",
        )
    return table


def _accuracy(setting: SettingResult) -> str:
    low, high = setting.interval
    return f"{100 * setting.accuracy:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def _side_by_side(teacher: Engine, student: Engine) -> Table:
    """One question that both answer at the most tokens per step: of a few, the first that only the student gets right.

    Without such a question among them it is the first.
    """
    asked = _questions(teacher, "test", NUM_SHOWN_FROM, seed=1)
    texts, fastest = [prompt.text for prompt in asked.prompts], replace(DECODING, steps_per_block=1)
    answers = [engine.generate_text(texts, fastest) for engine in (teacher, student)]
    verdicts = list(zip(*(_are_right(asked.problems, each) for each in answers), strict=True))
    place = verdicts.index((False, True)) if (False, True) in verdicts else 0
    kind = "a question that only the student gets right" if verdicts[place] == (False, True) else "one question"
    table = Table(title=f"{kind}, at {TOKENS_PER_STEP[-1]} tokens per step", show_header=False, box=None, expand=True)
    prompt = asked.prompts[place]
    table.add_row(Panel(prompt.text, title=f"question (right answer: {prompt.answer})"))
    pair = [each[place] for each in answers]
    for name, answer, right in zip(("teacher", "student"), pair, verdicts[place], strict=True):
        verdict = "[green]right[/]" if right else "[red]wrong[/]"
        title = f"{name}: {verdict}, {len(answer.token_ids)} tokens in {answer.num_forwards} forwards"
        table.add_row(Panel((answer.text or "").strip(), title=title))
    return table


def _are_right(problems: Sequence[Problem], answers: Sequence[Generation]) -> list[bool]:
    with get_task("story").grader() as grader:
        graded = [grader.submit(answer.text or "", problem) for problem, answer in zip(problems, answers, strict=True)]
        return [each.result().right for each in graded]


def _write_report(out: Path, results: Sequence[EvalResult], rounds: ResultTable) -> None:
    for result in results:
        write_result(result, out / f"{result.name}.json")
    plot_accuracy(results, out / "accuracy.png")
    text = (
        f"# T3D demo\n\nTeacher: {TEACHER}. Student: {len(ROUNDS)} rounds of {_settings()}.\n\n"
        f"{result_markdown(results)}\n![accuracy against tokens per forward](accuracy.png)\n\n{rounds.section()}"
    )
    write_whole(out / "report.md", text)


def _contents(training: str) -> Iterator[tuple[str, str]]:
    yield "report.md", "the tables, with the picture"
    yield "accuracy.png", "accuracy against tokens per forward"
    yield f"{training}/model/", "the student, for t3d generate --model"
    yield f"{training}/round-1/", "its answers and their reveal order (Parquet), metrics, TensorBoard logs; and so on"
    yield f"{training}/", "recipe and record of the rounds"


@contextmanager
def _stage(console: Console, title: str) -> Iterator[None]:
    console.print(f"[bold]{title}[/]")
    started = time.monotonic()
    yield
    console.print(f"   [dim]{time.monotonic() - started:.0f} s[/]")


def _steps() -> str:
    *most, last = map(str, TOKENS_PER_STEP)
    return f"{', '.join(most)} and {last}"


def _settings() -> str:
    options = ", ".join(f"{key} {value:g}" for key, value in {**OPTIM, **CORRUPTION}.items())
    return f"{OBJECTIVE['name']}, {options}"

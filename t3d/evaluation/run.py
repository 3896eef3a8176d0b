"""Run a benchmark at several decoding settings."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.evaluation.answers import Answer, answer_of, figures_of, write_answers
from t3d.evaluation.benchmarks import Benchmark
from t3d.evaluation.exam import Exam, prepare
from t3d.evaluation.identity import finished_result, identity_of, require_unused
from t3d.evaluation.journal import Header, Journal, open_journal
from t3d.evaluation.marking import Marking
from t3d.evaluation.results import ANSWERS_FILE, RESULT_FILE, EvalResult, EvalSubject, SettingResult, write_result
from t3d.evaluation.settings import label_of, setting_fields
from t3d.models import device_name, model_fingerprint, num_holders
from t3d.progress import Reporter, progress
from t3d.tasks import Grader, GraderOptions
from t3d.tasks.base import DEFAULT_OPTIONS
from t3d.types import Decoding
from t3d.versions import versions

TASKS_OWN = PromptConfig()
"""Questions are put as their task puts them."""


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    settings: Sequence[Decoding],
    *,
    name: str,
    model: str,
    limit: int | None = None,
    seed: int = 0,
    shuffle: int | None = None,
    samples: int = 1,
    prompt: PromptConfig = TASKS_OWN,
    out: Path | None = None,
    resume: bool = False,
    grader_options: GraderOptions = DEFAULT_OPTIONS,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvalResult:
    """Accuracy, parallelism and speed of one model at each setting: `prepare` an exam, then `take_exam`.

    Args:
        engine: with a tokenizer.
        benchmark: the problems and their grader.
        settings: resolved decoding settings (`settings_to_try`), whose own seeds are not used.
        limit: problems; None takes the benchmark's default.
        seed: of decoding, and of the problems of an endless benchmark.
        shuffle: seed of the order that `limit` takes from; None is the source's own.
        samples: responses to each problem.
        prompt: how questions are put; what it leaves open is the task's.
        name: how reports call the model.
        model: where it came from.
        out: folder for all files; None writes none.
        resume: go on with what an earlier run left in `out`.
        grader_options: workers, and what programs run in.
        reporter: is told of graded answers; None shows a bar of its own.
        command: what the result says was typed.

    Raises:
        RequestError: as `prepare` and `take_exam`.
        WorkError: the disk refuses.
    """
    exam = prepare(engine, benchmark, settings, limit=limit, seed=seed, shuffle=shuffle, samples=samples, prompt=prompt)
    return take_exam(
        engine,
        exam,
        name=name,
        model=model,
        out=out,
        resume=resume,
        grader_options=grader_options,
        reporter=reporter,
        command=command,
    )


def take_exam(
    engine: Engine,
    exam: Exam,
    *,
    name: str,
    model: str,
    out: Path | None = None,
    resume: bool = False,
    grader_options: GraderOptions = DEFAULT_OPTIONS,
    reporter: Reporter | None = None,
    command: str = "",
) -> EvalResult:
    """Accuracy, parallelism and speed of one model at each setting of an exam.

    A response depends on its problem, its number among the problem's samples, the exam's seed and the setting: not on
    what else is asked, and not on where a run was cut off. Responses are graded while others are decoded. What is
    finished is on disk at once: result.json after each setting with those that are complete, the rest in a journal,
    which at the end becomes answers.jsonl (problem by problem at each setting).

    Args:
        engine: that the exam was prepared for.
        exam: what is asked.
        name: how reports call the model.
        model: where it came from.
        out: folder for all files; None writes none.
        resume: go on with what an earlier run left in `out`, decoding no response twice; one that is finished is only
            read.
        grader_options: workers, and what programs run in.
        reporter: is told of graded answers; None shows a bar of its own.
        command: what the result says was typed.

    Raises:
        RequestError: before anything runs: no sandbox where there are programs to run; a folder that holds an
            evaluation already, or, to resume, another one.
        WorkError: the disk refuses.
    """
    if out is not None and not resume:
        require_unused(out)
    with exam.benchmark.task.grader(grader_options) as grader:
        subject = _subject(engine, exam, grader, name, model, command)
        identity = identity_of(subject, [setting_fields(each) for each in exam.settings], exam.num_samples)
        if out is not None and (finished := finished_result(out, identity)) is not None:
            return finished
        header = Header(identity, subject.started, subject.command)
        with closing(open_journal(out, header, resume)) as journal:
            first_part = {"started": journal.header.started, "command": journal.header.command}
            total = len(exam.items) * len(exam.settings)
            with _reporting(reporter, name, total, done=len(journal.verdicts)) as bar:
                return _run(engine, exam, grader, journal, bar, subject.model_copy(update=first_part), out)


def _reporting(reporter: Reporter | None, name: str, total: int, done: int) -> AbstractContextManager[Reporter]:
    return progress(f"evaluate {name}", total, "answers", done) if reporter is None else nullcontext(reporter)


def _run(
    engine: Engine,
    exam: Exam,
    grader: Grader,
    journal: Journal,
    reporter: Reporter,
    subject: EvalSubject,
    out: Path | None,
) -> EvalResult:
    """Every setting in turn; the files."""
    answers: list[Answer] = []
    figures: list[SettingResult] = []
    for number, decoding in enumerate(exam.settings):
        Marking(number, decoding, exam.items, grader, journal, reporter).complete(engine)
        own = _answers(number, decoding, exam, journal)
        answers += own
        figures.append(figures_of(decoding, own, exam.num_samples, journal.decoding_seconds(number)))
        result = EvalResult(**subject.model_dump(), settings=figures)
        if out is not None:
            is_last = number == len(exam.settings) - 1
            if is_last:
                write_answers(answers, out / ANSWERS_FILE)
            write_result(result, out / RESULT_FILE, answers=out / ANSWERS_FILE if is_last else None)
    journal.remove()
    return result


def _answers(number: int, decoding: Decoding, exam: Exam, journal: Journal) -> list[Answer]:
    label = label_of(decoding)
    return [
        answer_of(label, item, journal.responses[number, place], journal.verdicts[number, place])
        for place, item in enumerate(exam.items)
    ]


def _subject(engine: Engine, exam: Exam, grader: Grader, name: str, model: str, command: str) -> EvalSubject:
    benchmark = exam.benchmark
    return EvalSubject(
        name=name,
        model=model,
        model_fingerprint=model_fingerprint(engine.model),
        benchmark=benchmark.name,
        split=benchmark.split,
        data=benchmark.data,
        seed=exam.seed,
        shuffle=exam.shuffle,
        data_fingerprint=exam.data_fingerprint,
        prompt=exam.form,
        prompt_fingerprint=exam.prompt_fingerprint,
        grader=grader.version,
        isolation=grader.isolation,
        device=device_name(engine.model.device, num_holders(engine.model)),
        dtype=str(engine.model.dtype).removeprefix("torch."),
        backend=engine.backend.name,
        batch_size=engine.max_batch_size,
        versions=versions(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )

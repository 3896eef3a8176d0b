"""Run a study: every task as soon as what it needs is over, on as many workers as are asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from t3d.config.study import StudyConfig
from t3d.credentials import typed_command
from t3d.errors import RequestError, WorkError, tell
from t3d.progress import Reporter, progress
from t3d.study.cells import RUN, tasks_of
from t3d.study.check import check_study
from t3d.study.folder import open_folder
from t3d.study.graph import Graph, Task
from t3d.study.jobs import drop_weights
from t3d.study.pool import Pool, Workers, environments
from t3d.study.rows import ROWS_FILE, Start, StudyRows, read_rows, write_rows
from t3d.study.state import Impossible, State
from t3d.versions import versions

MakeWorkers = Callable[[], AbstractContextManager[Workers]]


def run_study(
    study: StudyConfig, jobs: int | None = None, resume: bool = False, workers: MakeWorkers | None = None
) -> StudyRows:
    """Do what is not done of a study, and write its rows.

    Args:
        study: all of it is checked before anything runs.
        jobs: worker processes; None is one a device.
        resume: go on with a study; cells that failed are tried again.
        workers: in place of processes, for tests.

    Returns:
        what `rows.json` holds; cells that failed say so.

    Raises:
        RequestError: the study cannot be done as it stands, or its folder holds something else.
        KeyboardInterrupt: it was interrupted; says how to go on.
        WorkError: the disk refuses.
    """
    devices = cuda_devices() if study.recipe.get("device") != "cpu" else []
    jobs = jobs or max(1, len(devices))
    check_study(study)
    with open_folder(study, resume) as out:
        make = workers or partial(Pool, environments(jobs, devices), out / "logs")
        runner = Runner(study, _starts(out, jobs, len(devices)))
        try:
            return runner.run(make)
        except KeyboardInterrupt:
            told = f"{out} keeps what is finished: the same command with --resume goes on"
            raise KeyboardInterrupt(told) from None


class Runner:
    """Takes a study's tasks through its workers.

    Args:
        study: whose folder is open.
        starts: of the study, this one last.
    """

    def __init__(self, study: StudyConfig, starts: tuple[Start, ...]) -> None:
        self._study, self._starts = study, starts
        self._graph, self._state = Graph(tasks_of(study)), State(study)

    def run(self, make_workers: MakeWorkers) -> StudyRows:
        """Every task; workers are made only if something is left to do."""
        self._pass_finished()
        done = len(self._graph.errors)
        if not self._graph.is_over:
            with make_workers() as workers, progress("study", len(self._graph), "cells", done) as bar:
                while not self._graph.is_over:
                    self._begin_ready(workers, bar)
                    if workers.is_busy:
                        for key, error in workers.wait():
                            self._end(key, error, bar)
        return self._write()

    def _pass_finished(self) -> None:
        """Take in what earlier parts of the study finished, and what follows from it."""
        while finished := [task for task in self._graph.ready() if self._is_finished(task)]:
            for task in finished:
                self._take_in(task, None)

    def _is_finished(self, task: Task) -> bool:
        try:
            return self._state.job_of(task) is None
        except Impossible:
            return False

    def _begin_ready(self, workers: Workers, bar: Reporter) -> None:
        for task in self._graph.ready():
            if not workers.has_idle:
                return
            try:
                job = self._state.job_of(task)
            except Impossible as why:
                self._end(task.key, str(why), bar)
                continue
            self._graph.begin(task.key)
            if job is None:
                self._end(task.key, None, bar)
            else:
                workers.start(task.key, job)

    def _end(self, key: str, error: str | None, bar: Reporter) -> None:
        if error is not None:
            tell(f"study: {key} failed: {error}")
        self._take_in(self._graph[key], error)
        self._write()
        failures = len(self._graph.failures)
        bar.advance(1, **({"failed": str(failures)} if failures else {}))

    def _take_in(self, task: Task, error: str | None) -> None:
        self._state.end(task, error)
        self._graph.end(task.key, error)
        if task.kind == "tune":
            self._drop_unchosen(task.variant)

    def _drop_unchosen(self, method: str) -> None:
        """When a method's learning rate is chosen, the weights of the others go."""
        tried = [task for task in self._graph.tasks if task.kind == "tune" and task.variant == method]
        if self._study.keep_models == "all" or any(task.key not in self._graph.errors for task in tried):
            return
        with contextlib.suppress(Impossible):
            for folder in self._state.unchosen(method):
                drop_weights(folder / RUN, keeps_model=False)

    def _write(self) -> StudyRows:
        rows = StudyRows(study=self._study, starts=self._starts, rows=tuple(self._state.rows))
        write_rows(rows, Path(self._study.out) / ROWS_FILE)
        return rows


def require_all_done(rows: StudyRows) -> None:
    """Raises:
    WorkError: cells failed; names the first.
    """
    failed = [row for row in rows.rows if row.error is not None]
    if failed:
        first = failed[0]
        raise WorkError(
            f"{len(failed)} cells failed, first {first.name} with seed {first.seed}: {first.error}; "
            "--resume tries them again"
        )


def cuda_devices() -> Sequence[str]:
    """What CUDA_VISIBLE_DEVICES may name here, one by one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _starts(out: Path, jobs: int, devices: int) -> tuple[Start, ...]:
    """Earlier starts of the study, and this one."""
    with contextlib.suppress(RequestError):
        earlier = read_rows(out).starts
        return (*earlier, _this_start(jobs, devices))
    return (_this_start(jobs, devices),)


def _this_start(jobs: int, devices: int) -> Start:
    return Start(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=typed_command(),
        jobs=jobs,
        devices=devices,
        versions=versions(),
    )

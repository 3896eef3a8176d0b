"""What a run says of itself while it goes on: metrics.jsonl, trackers, and what people see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from torch import Tensor

from t3d.config import Recipe
from t3d.corruption import PackedBatch
from t3d.progress import Reporter
from t3d.training.run.folder import RunFolder
from t3d.training.run.interrupts import Interrupts, Stopped
from t3d.training.run.live import View, view_of_run
from t3d.training.run.meter import Meter
from t3d.training.run.metrics import Logged, MetricsLog, NoMetricsLog
from t3d.training.run.watching import Watcher
from t3d.training.student import Student


class RunReport:
    """Takes each step's metrics; fetches them from the device at logged steps only.

    Args:
        recipe: of the run.
        meter: of its speed.
        log, view: where metrics go.
    """

    def __init__(self, recipe: Recipe, meter: Meter, log: MetricsLog | NoMetricsLog, view: View) -> None:
        self._recipe, self.meter, self._log, self._view = recipe, meter, log, view

    def step(self, step: int, metrics: Mapping[str, Tensor], batches: Sequence[PackedBatch]) -> None:
        """Optimizer step `step` (1-based) is done. Metrics that are not finite are not logged; its loss is."""
        self.meter.count(batches)
        if not self._is_logged(step):
            self._view.step()
            return
        values = {name: float(value) for name, value in metrics.items()}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        values |= {**self.meter.read(), "seconds": self.meter.seconds}
        self._log.write(step, values)
        self._view.step(values)

    def left_out(self, batches: Sequence[PackedBatch]) -> None:
        """A step was left out: it has taken its time, and has no metrics."""
        self.meter.count(batches)
        self._view.step()

    def evaluation(self, step: int, watcher: Watcher, student: Student, interrupts: Interrupts) -> bool:
        """Have the student evaluated after `step` steps; False if somebody asked the run to stop meanwhile."""
        reporter = _Interruptible(self._view.evaluating(step, watcher.num_answers), interrupts)
        try:
            with self.meter.paused():
                metrics = watcher.evaluate(step, student, reporter)
        except Stopped:
            return False
        self._log.write(step, {**metrics, "seconds": self.meter.seconds})
        self._view.evaluated(step, metrics, watcher.best)
        return True

    @property
    def logged(self) -> Logged | None:
        """How much of metrics.jsonl is written, for a checkpoint; None beside the main process."""
        return self._log.logged

    def _is_logged(self, step: int) -> bool:
        return step % self._recipe.log_every == 0 or step == self._recipe.optim.steps


@contextmanager
def report_on(
    recipe: Recipe,
    folder: RunFolder,
    meter: Meter,
    finished_steps: int,
    is_main: bool,
    logged: Logged | None = None,
) -> Iterator[RunReport]:
    """The report of a run that goes on after `finished_steps`; beside the main process it keeps quiet.

    Args:
        recipe, folder, meter: of the run.
        finished_steps: of its earlier parts.
        is_main: whether this process is the main one.
        logged: how much of metrics.jsonl those steps wrote, where that is known.

    Raises:
        OSError: metrics.jsonl cannot be written.
    """
    log = folder.open_metrics(finished_steps, is_main, logged)
    view = view_of_run(f"t3d train  {folder.path}", recipe.optim.steps, finished_steps, shown=is_main)
    with closing(log), view as shown:
        yield RunReport(recipe, meter, log, shown)


class _Interruptible:
    """Ends an evaluation between two answers when somebody asks the run to stop."""

    def __init__(self, reporter: Reporter, interrupts: Interrupts) -> None:
        self._reporter, self._interrupts = reporter, interrupts

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self._reporter.advance(amount, **values)
        self._interrupts.raise_if_asked()

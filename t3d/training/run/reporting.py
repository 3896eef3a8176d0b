"""What a run says of itself while it goes on: metrics.jsonl, trackers, and what people see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from torch import Tensor

from t3d.config import Recipe
from t3d.corruption import PackedBatch
from t3d.progress import Reporter
from t3d.training.run.finite import FiniteGuard, NotFinite, not_finite
from t3d.training.run.folder import MetricsLog, NoMetricsLog, RunFolder
from t3d.training.run.interrupts import Interrupts, Stopped
from t3d.training.run.live import View, view_of_run
from t3d.training.run.meter import Meter
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
        self._guard = FiniteGuard()

    def step(self, step: int, metrics: Mapping[str, Tensor], batches: Sequence[PackedBatch]) -> NotFinite | None:
        """Optimizer step `step` (1-based) is done; returns what is wrong with it, or with the one before."""
        self.meter.count(batches)
        found = self._guard.watch(step, metrics)
        if found is not None or not self._is_logged(step):
            self._view.step()
            return found
        values = {name: float(value) for name, value in metrics.items()}
        found = not_finite(step, values)
        if found is None:
            values |= {**self.meter.read(), "seconds": self.meter.seconds}
            self._log.write(step, values)
            self._view.step(values)
        return found

    def check(self) -> NotFinite | None:
        """What is wrong with the last step; waits for it."""
        return self._guard.check()

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

    def _is_logged(self, step: int) -> bool:
        return step % self._recipe.log_every == 0 or step == self._recipe.optim.steps


@contextmanager
def report_on(
    recipe: Recipe, folder: RunFolder, meter: Meter, finished_steps: int, is_main: bool
) -> Iterator[RunReport]:
    """The report of a run that goes on after `finished_steps`; beside the main process it keeps quiet.

    Raises:
        OSError: metrics.jsonl cannot be written.
    """
    log = folder.open_metrics(finished_steps, writes=is_main)
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

"""What a training took, from the files of its run.

Runs of a study share devices, and the first steps of a run compile: so a step's seconds are the median over the run's
logged stretches without the first, and training takes steps times that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from t3d.checksums import unsealed
from t3d.study.rows import CurvePoint, Training
from t3d.training.rounds.record import ROUNDS_FILE
from t3d.training.run.folder import RECIPE_FILE, STARTS_FILE, read_metrics, read_outcome

ACCURACY = "accuracy@"


@dataclass(frozen=True, slots=True)
class Part:
    """One run of steps: a whole training, or that of a round.

    Attributes:
        folder: its run folder.
        rollout_seconds: of the answers that it learns from.
    """

    folder: Path
    rollout_seconds: float

    @property
    def wall_seconds(self) -> float:
        """Of the training, from the first step on, evaluations included."""
        return float(read_outcome(self.folder)["seconds"])


def training_of(run: Path, rollout_seconds: float, device: str) -> Training:
    """What a finished training took.

    Args:
        run: its folder, of one training or of rounds.
        rollout_seconds: of shared rollouts that it learns from; rounds have their own.
        device: that it ran on.
    """
    steps, seconds, rolled_out, curve = 0, 0.0, 0.0, []
    parts = list(_parts(run, rollout_seconds))
    for part in parts:
        lines = read_metrics(part.folder)
        pace = seconds_per_step(lines, _examples_per_step(part.folder))
        rolled_out += part.rollout_seconds
        for line in lines:
            accuracy = {
                int(key.removeprefix(ACCURACY)): value for key, value in line.items() if key.startswith(ACCURACY)
            }
            if accuracy:
                passed = rolled_out + seconds + line["step"] * pace
                curve.append(CurvePoint(step=steps + line["step"], seconds=passed, accuracy=accuracy))
        last = max(line["step"] for line in lines)
        steps, seconds = steps + last, seconds + last * pace
    return Training(
        steps=steps,
        seconds_per_step=seconds / steps,
        rollout_seconds=rolled_out,
        wall_seconds=sum(part.wall_seconds for part in parts),
        starts=len((run / STARTS_FILE).read_text().splitlines()),
        device=device,
        curve=tuple(curve),
    )


def seconds_per_step(lines: list[dict[str, Any]], examples_per_step: int) -> float:
    """The median over a run's logged stretches of steps, without the first if there are others.

    Args:
        lines: of metrics.jsonl; its rates leave out the time of evaluations.
        examples_per_step: of the run.
    """
    stretches = [examples_per_step / line["examples_per_second"] for line in lines if "examples_per_second" in line]
    return median(stretches[1:] or stretches)


def _parts(run: Path, rollout_seconds: float) -> Iterator[Part]:
    record = run / ROUNDS_FILE
    if not record.exists():
        yield Part(run, rollout_seconds)
        return
    rolled_out = 0.0
    for part, figures in unsealed(record.read_bytes())["finished"].items():  # in the order of their ends
        if part.endswith("/training"):
            yield Part(run / part, rolled_out)
            rolled_out = 0.0
        elif "/judged" not in part:  # that is evaluation
            rolled_out += figures.get("seconds", 0.0)


def _examples_per_step(folder: Path) -> int:
    return int(json.loads((folder / RECIPE_FILE).read_text())["optim"]["examples_per_step"])

"""A method with all of its seeds, and how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from t3d.config.study import TEACHER, StudyConfig
from t3d.evaluation.metrics import paired_difference, seed_mean_interval
from t3d.study.rows import Kind, Row, SettingRow, StudyRows, Training, best_validated


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in percent or points, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a table: a method, an ablation or the teacher, with the seeds that were tested.

    Attributes:
        name, variant, kind: as in `Row`.
        group, about: as the study file says.
        lr: chosen; None for the teacher.
        rows: one a seed, at least one, of the same settings and problems.
        accuracy: setting's label -> percent, over seeds and problems.
    """

    name: str
    variant: str
    kind: Kind
    group: str
    about: str
    lr: float | None
    rows: tuple[Row, ...]
    accuracy: dict[str, Figure]

    @property
    def settings(self) -> tuple[SettingRow, ...]:
        """Those of the first seed, for what all seeds share."""
        return self.rows[0].settings

    @property
    def trainings(self) -> list[Training]:
        """Of each seed; none of the teacher."""
        return [row.training for row in self.rows if row.training is not None]

    def right(self, label: str, seeds: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """bool [seeds, problems]: what is right at a setting; of the teacher the same for every seed."""
        rows = self.rows
        if seeds is not None:
            by_seed = {row.seed: row for row in rows}
            rows = tuple(by_seed[None if self.kind == "teacher" else seed] for seed in seeds)
        return np.stack([_setting(row, label).bits for row in rows])

    def tokens_per_forward(self, label: str) -> float:
        """Mean over seeds."""
        return fmean(_setting(row, label).tokens_per_forward for row in self.rows)

    def mean_length(self, label: str) -> float:
        """Tokens an answer, mean over seeds."""
        return fmean(_setting(row, label).mean_length for row in self.rows)


@dataclass(frozen=True, slots=True)
class Difference:
    """How many points one entry is better than another at a setting.

    Attributes:
        points: with its 95% interval, paired over problems and seeds.
        num_seeds: that both have.
    """

    points: Figure
    num_seeds: int


def entries_of(found: StudyRows) -> list[Entry]:
    """All that was tested, in the order of the study: the teacher, methods, equal time, ablations."""
    study, rows = found.study, found.rows
    entries = [_entry(study, [row for row in rows if row.kind == "teacher"], None)]
    for kind, variants in (("method", study.methods), ("equal time", study.methods), ("ablation", study.ablations)):
        for variant in variants:
            lr = chosen_lr(found, variant)
            own = [row for row in rows if row.kind == kind and row.variant == variant and row.lr == lr]
            entries.append(_entry(study, own, lr))
    return [entry for entry in entries if entry is not None]


def chosen_lr(found: StudyRows, variant: str) -> float | None:
    """The learning rate of a method, or of the one that an ablation is of, by the first seed; None if none worked."""
    ablation = found.study.ablations.get(variant)
    method = variant if ablation is None else ablation.of
    tried = (row for row in found.rows if (row.kind, row.variant, row.seed) == ("method", method, found.study.seeds[0]))
    best = best_validated(tried)
    return None if best is None else best.lr


def compare(one: Entry, other: Entry, label: str) -> Difference | None:
    """How much better the one is; None if no seed has both."""
    sets = [{row.seed for row in entry.rows} for entry in (one, other) if entry.kind != "teacher"]
    common = sorted(seed for seed in set.intersection(*sets) if seed is not None) if sets else [0]
    if not common:
        return None
    return Difference(_figure(paired_difference(one.right(label, common), other.right(label, common))), len(common))


def static_labels(entries: Sequence[Entry]) -> dict[float, str]:
    """Tokens per step -> the setting's label, in order."""
    settings = {each.tokens_per_step: each.label for entry in entries for each in entry.settings}
    return {number: settings[number] for number in sorted(key for key in settings if key is not None)}


def dynamic_labels(entries: Sequence[Entry]) -> dict[float, str]:
    """Threshold -> the setting's label, in order."""
    settings = {each.threshold: each.label for entry in entries for each in entry.settings}
    return {threshold: settings[threshold] for threshold in sorted(key for key in settings if key is not None)}


def _entry(study: StudyConfig, rows: Sequence[Row], lr: float | None) -> Entry | None:
    tested = tuple(row for row in rows if row.settings and row.error is None)
    if not tested:
        return None
    first = tested[0]
    config = study.variants.get(first.variant)
    bare = Entry(
        name=first.name,
        variant=first.variant,
        kind=first.kind,
        group="" if config is None else config.group,
        about="what every student starts from" if first.variant == TEACHER else "" if config is None else config.about,
        lr=lr,
        rows=tested,
        accuracy={},
    )
    labels = [each.label for each in first.settings]
    bare.accuracy.update({label: _figure(seed_mean_interval(bare.right(label))) for label in labels})
    return bare


def _setting(row: Row, label: str) -> SettingRow:
    return next(each for each in row.settings if each.label == label)


def _figure(shares: tuple[float, float, float]) -> Figure:
    value, low, high = (100 * share for share in shares)
    return Figure(value, low, high)

"""Rows: what a study knows of each of its cells, and the one file from which its report is made."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from t3d.checksums import Damaged, sealed, unsealed
from t3d.config import Config
from t3d.config.recipe import checked
from t3d.config.study import ClaimConfig, StudyConfig
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole

ROWS_FILE, CELL_FILE = "rows.json", "cell.json"

Record = TypeVar("Record", bound=Config)
Kind = Literal["teacher", "method", "equal time", "ablation"]


class SettingRow(Config):
    """A student at one decoding setting on the test problems.

    Attributes:
        label: as tables show it, such as "2 tokens/step".
        tokens_per_step: of a static rule; None for the dynamic one, whose `threshold` it then is.
        num_problems: answered once each.
        right: which of them were right, packed by `pack_bits`.
        tokens_per_forward: TPF over all forwards, prefill included.
        mean_length: tokens an answer.
    """

    label: str
    tokens_per_step: float | None
    threshold: float | None
    num_problems: int
    right: str
    tokens_per_forward: float
    mean_length: float

    @property
    def bits(self) -> np.ndarray:
        """bool [num_problems]: which were right."""
        return unpack_bits(self.right, self.num_problems)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.bits.mean())


class CurvePoint(Config):
    """An evaluation while training (`evaluation` of the recipe).

    Attributes:
        step: optimizer steps, all rounds counted.
        seconds: of rollouts and steps until then, as `Training` counts them.
        accuracy: tokens per step -> share of right validation answers.
    """

    step: int
    seconds: float
    accuracy: dict[int, float]


class Training(Config):
    """What a training took.

    Attributes:
        steps: optimizer steps, all rounds together.
        seconds_per_step: the median over logged stretches, without the first of each run, which compiles, and without
            evaluations; over rounds their mean, weighted by steps.
        rollout_seconds: of the answers that it learns from, shared ones counted in full.
        wall_seconds: of trainings with all they do, compilation and evaluations too, from the first step on.
        starts: how often it was begun or gone on with; times of more than one hold less well.
        device: on which.
        curve: evaluations on the way.
    """

    steps: int
    seconds_per_step: float
    rollout_seconds: float
    wall_seconds: float
    starts: int
    device: str
    curve: tuple[CurvePoint, ...] = ()

    @property
    def step_seconds(self) -> float:
        """Steps at their steady pace."""
        return self.steps * self.seconds_per_step

    @property
    def seconds(self) -> float:
        """Rollouts and steps: what counts where methods are compared at equal time."""
        return self.rollout_seconds + self.step_seconds


class Row(Config):
    """One cell: a method with a learning rate and a seed.

    Attributes:
        name: of the table's row; `variant` is the method or ablation whose recipe it has.
        kind: what it is there for.
        lr, seed: None for the teacher, and where a cell failed before they were known.
        recipe: fields of the training; None for the teacher.
        training: what it took; None for the teacher, and before it is done.
        validation: tokens per step -> accuracy on the problems that decide the learning rate; {} if not measured.
        settings: on the test problems; () if not measured.
        data_fingerprint: of the test problems.
        error: why it failed.
    """

    name: str
    variant: str
    kind: Kind
    lr: float | None = None
    seed: int | None = None
    recipe: dict[str, Any] | None = None
    training: Training | None = None
    validation: dict[int, float] = Field(default_factory=dict)
    settings: tuple[SettingRow, ...] = ()
    data_fingerprint: str | None = None
    error: str | None = None

    @property
    def validation_mean(self) -> float:
        """What decides the learning rate."""
        return float(np.mean(list(self.validation.values())))


class Start(Config):
    """One start of the command.

    Attributes:
        time: UTC, ISO 8601; command: what was typed.
        jobs: worker processes; devices: that they share.
        versions: of the software.
    """

    time: str
    command: str
    jobs: int
    devices: int
    versions: dict[str, str]


class StudyRows(Config):
    """`rows.json`: everything that a report needs.

    Attributes:
        study: as it was run.
        starts: of the command, the last one last.
        rows: of all cells that are finished or failed.
    """

    schema_version: Literal[1] = 1
    study: StudyConfig
    starts: tuple[Start, ...]
    rows: tuple[Row, ...]

    def with_claims(self, claims: tuple[ClaimConfig, ...]) -> StudyRows:
        """The same rows, to be judged by other claims.

        Raises:
            RequestError: a claim about a row or a setting that is none of the study's.
        """
        fields = self.study.model_dump() | {"claims": [each.model_dump() for each in claims]}
        return self.model_copy(update={"study": checked(StudyConfig, fields, "claims")})


def best_validated(rows: Iterable[Row]) -> Row | None:
    """The row that decides a method's learning rate: best on the validation problems; of equals the lower rate.

    None if none of them was validated.
    """
    return max(
        (row for row in rows if row.validation),
        key=lambda row: (row.validation_mean, -(row.lr or 0.0)),
        default=None,
    )


def pack_bits(right: Sequence[bool]) -> str:
    """Booleans as text: eight a byte, base64."""
    return base64.b64encode(np.packbits(np.asarray(right, dtype=bool)).tobytes()).decode("ascii")


def unpack_bits(packed: str, count: int) -> np.ndarray:
    """bool [count]: what `pack_bits` was given."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8), count=count)
    return bits.astype(bool)


def write_rows(rows: StudyRows, file: Path) -> None:
    """Write `rows.json`, whole or not at all.

    Raises:
        WorkError: the disk refuses.
    """
    write_record(rows, file)


def write_record(record: Config, file: Path) -> None:
    """Write a record as JSON, whole or not at all; its folder is made.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(sealed(record.model_dump(mode="json")), indent=1) + "\n")
    except OSError as error:
        raise WorkError(f"{file}: {error.strerror or error}") from error


def read_record(kind: type[Record], file: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        OSError, ValueError: it cannot be read, is damaged or something else.
    """
    return kind.model_validate_json(json.dumps(unsealed(file.read_bytes())))


def read_rows(path: Path) -> StudyRows:
    """Read `rows.json`, or that of a study's folder.

    Raises:
        RequestError: not there, or something else.
    """
    file = path / ROWS_FILE if path.is_dir() else path
    try:
        return read_record(StudyRows, file)
    except OSError as error:
        raise RequestError(
            f"{file}: {error.strerror or error}; name the out of a t3d study, or its rows.json"
        ) from error
    except Damaged as error:
        raise RequestError(f"{file}: damaged ({error}); t3d study --resume makes it anew") from error
    except ValueError as error:
        raise RequestError(f"{file}: not the rows of a t3d study, or of another version of t3d") from error


def read_row(file: Path) -> Row | None:
    """A cell's row; None if there is none.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return read_record(Row, file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read; remove the cell's folder to have it done again") from error

"""What an evaluation found, and the JSON file that keeps it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from t3d.config import Config
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole


class SettingResult(Config):
    """One model at one decoding setting.

    Attributes:
        label: as tables show it, such as "2 tokens/step".
        tokens_per_step: the paper's TokPS, B / T; None for rules that decide by themselves.
        rule, threshold, block_size, steps_per_block, temperature: how it was decoded.
        num_problems, num_right: counts.
        accuracy: share of right answers.
        interval: its 95% interval (Wilson).
        tokens_per_forward: TPF, response tokens over *all* forwards, prefill included.
        tokens_per_second: response tokens over wall time of the whole batch.
        mean_length: response tokens a problem.
        finish_reasons: how many responses ended in which way.
    """

    label: str
    tokens_per_step: float | None
    rule: str
    threshold: float | None
    block_size: int
    steps_per_block: int
    temperature: float
    num_problems: int
    num_right: int
    accuracy: float
    interval: tuple[float, float]
    tokens_per_forward: float
    tokens_per_second: float
    mean_length: float
    finish_reasons: dict[str, int]


class EvalResult(Config):
    """One model on one benchmark.

    Attributes:
        name: how reports call the model.
        model: folder, hub id or built-in name; model_fingerprint: of its weights.
        benchmark, seed: which problems.
        device: what it ran on.
        versions: of the software.
        settings: a result each.
    """

    name: str
    model: str
    model_fingerprint: str
    benchmark: str
    seed: int
    device: str
    versions: dict[str, str]
    settings: list[SettingResult] = Field(min_length=1)


def write_result(result: EvalResult, file: Path) -> None:
    """Write as JSON; the file appears whole or not at all.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(result.model_dump(mode="json"), indent=2) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error


def read_result(file: str | Path) -> EvalResult:
    """Read what `write_result` wrote.

    Raises:
        RequestError: not there, or not such a file.
    """
    try:
        return EvalResult.model_validate_json(Path(file).read_text())
    except OSError as error:
        raise RequestError(f"result {file}: {error.strerror or error}; name a result.json of t3d eval") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RequestError(f"result {file}: not a result of t3d eval") from error

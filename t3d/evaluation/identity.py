"""What makes two runs of an evaluation parts of the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t3d.errors import RequestError
from t3d.evaluation.journal import JOURNAL_FILE, require_same
from t3d.evaluation.results import ANSWERS_FILE, RESULT_FILE, EvalResult, EvalSubject, damage_of_answers, read_result
from t3d.evaluation.settings import SETTING_FIELDS

SUBJECT_FIELDS = {
    "model": "model_fingerprint",
    "benchmark": "benchmark",
    "split": "split",
    "problems": "data_fingerprint",
    "prompts": "prompt_fingerprint",
    "seed": "seed",
    "shuffle": "shuffle",
    "grader": "grader",
    "sandbox": "isolation",
    "device": "device",
    "dtype": "dtype",
    "backend": "backend",
}
"""What the parts of a run have in common beside samples and settings: word for it -> field of `EvalSubject`.

The batch size is not among them: who ran out of memory shall be able to go on with a smaller one.
"""


def identity_of(subject: EvalSubject, settings: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """Name -> value of all that the parts of a run share.

    Args:
        settings: each with the fields of `SETTING_FIELDS`; others do not count.
        samples: responses to each problem.
    """
    shared = {word: getattr(subject, field) for word, field in SUBJECT_FIELDS.items()}
    decoding = {name: [setting[name] for setting in settings] for name in SETTING_FIELDS}
    return {**shared, "samples": samples, **decoding}


def finished_result(folder: Path, identity: dict[str, Any]) -> EvalResult | None:
    """The result of a run that came to its end; None if there is none, or it is to be gone on with.

    Raises:
        RequestError: it is that of another run, or damaged.
    """
    file = folder / RESULT_FILE
    if (folder / JOURNAL_FILE).exists() or not file.exists():
        return None
    result = read_result(file)
    settings = [each.model_dump() for each in result.settings]
    require_same(folder, identity_of(result, settings, result.settings[0].num_samples), identity)
    if damage := damage_of_answers(file, folder / ANSWERS_FILE):
        raise RequestError(f"{folder / ANSWERS_FILE}: {damage}; run t3d eval again, into another folder")
    return result


def require_unused(folder: Path) -> None:
    """Refuse a folder with an evaluation in it.

    Raises:
        RequestError: it says how to go on with it.
    """
    if any((folder / name).exists() for name in (JOURNAL_FILE, RESULT_FILE)):
        raise RequestError(f"{folder}: holds an evaluation already; --resume goes on with it, or choose a new folder")

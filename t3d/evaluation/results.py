"""What an evaluation found, and the JSON file that keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from t3d.checksums import Damaged, sealed, sha256_of, unsealed
from t3d.config import Config, PromptConfig
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole

RESULT_FILE = "result.json"
ANSWERS_FILE = "answers.jsonl"
Count = Annotated[int, Field(ge=1, lt=2**63)]
Tally = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
_ANSWERS = "answers"


class SettingResult(Config):
    """One model at one decoding setting, over `num_problems` problems with `num_samples` responses each.

    Attributes:
        label: as tables show it, such as "2 tokens/step".
        tokens_per_step: the paper's TokPS, B / T; None for rules that decide by themselves.
        rule, threshold, block_size, steps_per_block, temperature, top_k, top_p, max_new_tokens: how it was decoded.
        entropy_bound: nats, of the rule that has one.
        num_problems, num_samples: problems, and responses to each.
        num_right: right responses.
        accuracy: share of right responses: pass@1.
        interval: its 95% interval: Wilson's where each problem's responses are all right or all wrong, as with one
            response a problem; else bootstrapped over problems.
        pass_at_k: k -> unbiased estimate of the chance that one of k responses is right (Chen et al. 2021, eq. 1), for
            each power of two up to `num_samples`.
        verdicts: how many responses were found right, wrong, unparsed, timed out, and so on (`Verdict.outcome`); those
            that the engine could not finish are "not_decoded".
        num_tokens, num_forwards: of all responses; forwards of the model, prefill included.
        tokens_per_forward: TPF, `num_tokens / num_forwards`.
        mean_steps: denoising steps a response, up to the one that revealed the last of its tokens.
        measured_tokens_per_step: `num_tokens` over all denoising steps; what a dynamic rule made of the trade.
        seconds: wall time from the first request to the last response, summed over the parts of a run that was
            resumed; waiting for verdicts after that does not count.
        tokens_per_second: `num_tokens / seconds`, of all requests together.
        latency_median, latency_p95: seconds from a request's admission to its last token (`Generation.seconds`), in the
            company that it was decoded in (batch size 1 gives the latency of a lone request).
        mean_length: response tokens.
        finish_reasons: how many responses ended in which way.
        majority_accuracy: expected share of problems whose most frequent answer is right, ties broken by lot; None with
            one response a problem, or where answers are programs. majority_interval: its 95% interval, as `interval`.
        distinct_answers: mean number of different answers to a problem, under the same conditions.
        distinct_responses: mean number of different texts a problem / `num_samples`; None with one response a problem.
        nats_per_token: mean surprisal -log(confidence) of the response tokens, of responses that did not end by an
            error; None if there is none. What it estimates: docs/evaluation.md, "Sharpness".
        right_answers: "1" a right response and "0" a wrong one, problems in the order of their ids, each with its
            samples: what paired comparisons need. `rights` reads it.

        What files of schema 2 lack is None: these six.
    """

    label: str
    tokens_per_step: float | None
    rule: str
    threshold: float | None
    block_size: Count
    steps_per_block: Count
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: Count
    num_problems: Count
    num_samples: Count
    num_right: Tally
    accuracy: Share
    interval: tuple[float, float]
    pass_at_k: dict[int, float]
    verdicts: dict[str, int]
    num_tokens: Tally
    num_forwards: Tally
    tokens_per_forward: float
    mean_steps: float
    measured_tokens_per_step: float
    seconds: float
    tokens_per_second: float
    latency_median: float
    latency_p95: float
    mean_length: float
    finish_reasons: dict[str, int]
    entropy_bound: float | None = None
    majority_accuracy: float | None = None
    majority_interval: tuple[float, float] | None = None
    distinct_answers: float | None = None
    distinct_responses: float | None = None
    nats_per_token: float | None = None
    right_answers: str | None = None

    @model_validator(mode="after")
    def _an_answer_a_response(self) -> Self:
        if self.right_answers is not None and not (
            len(self.right_answers) == self.num_problems * self.num_samples and set(self.right_answers) <= {"0", "1"}
        ):
            raise ValueError(f"right_answers must be {self.num_problems} x {self.num_samples} digits 0 and 1")
        return self

    def rights(self) -> NDArray[np.bool_] | None:
        """Which responses are right, bool [num_problems, num_samples], problems in the order of their ids.

        At settings of results over the same data, rows are of the same problems. None if the file does not tell.
        """
        if self.right_answers is None:
            return None
        flags = np.frombuffer(self.right_answers.encode(), dtype=np.uint8) == ord("1")
        return flags.reshape(self.num_problems, self.num_samples)


class EvalSubject(Config):
    """What an evaluation is of, and how it is done: all of a result but its figures.

    Attributes:
        schema_version: of the file; 2 had fewer figures, and is read too.
        name: how reports call the model.
        model: folder, hub id or built-in name; model_fingerprint: of its weights.
        benchmark, split: which problems; data: file, folder or hub id that they came from, None for a built-in task.
        seed: of decoding, and of the problems of an endless task; shuffle: seed of the order that `--limit` took from,
            None for the source's own order.
        data_fingerprint: of the problems that were asked, with their answers and tests.
        prompt: the resolved `PromptConfig`; prompt_fingerprint: of all prompts, as text.
        grader: its version (`Grader.version`); isolation: what programs ran in, None if there were none.
        device, dtype, backend, batch_size: what it ran on and how (batch_size None: what memory allowed; of a run that
            was resumed with another one, the last).
        versions: of the software.
        started: UTC time, ISO 8601.
        command: what was typed, "" from Python.
    """

    schema_version: Literal[2, 3] = 3
    name: str
    model: str
    model_fingerprint: str
    benchmark: str
    split: str
    data: str | None
    seed: int
    shuffle: int | None
    data_fingerprint: str
    prompt: PromptConfig
    prompt_fingerprint: str
    grader: str
    isolation: str | None
    device: str
    dtype: str
    backend: str
    batch_size: int | None
    versions: dict[str, str]
    started: str
    command: str


class EvalResult(EvalSubject):
    """One model on one benchmark.

    Attributes:
        settings: a result each.
    """

    settings: list[SettingResult] = Field(min_length=1)


def write_result(result: EvalResult, file: Path, answers: Path | None = None) -> None:
    """Write as JSON, with a checksum; the file appears whole or not at all.

    Args:
        result: of an evaluation.
        file: to write.
        answers: file of the answers, written before; its checksum is stored too.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fields = result.model_dump(mode="json")
        beside = {} if answers is None else {_ANSWERS: sha256_of(answers)}
        write_whole(file, json.dumps(sealed({**fields, **beside}), indent=2) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error


def read_result(file: str | Path) -> EvalResult:
    """Read what `write_result` wrote.

    Raises:
        RequestError: not there, not such a file, or one of another schema.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        fields = unsealed(text)
        fields.pop(_ANSWERS, None)
        return EvalResult.model_validate_json(json.dumps(fields))
    except OSError as error:
        raise RequestError(f"result {file}: {error.strerror or error}; name a result.json of t3d eval") from error
    except Damaged as error:
        raise RequestError(f"result {file}: damaged ({error}); run t3d eval again, into another folder") from error
    except ValueError as error:  # no text, no record, or not of the schema
        if isinstance(error, ValidationError) and _is_of_another_schema(fields):
            raise RequestError(f"result {file}: written by another version of t3d; run t3d eval again") from error
        raise RequestError(f"result {file}: not a result of t3d eval") from error


def damage_of_answers(result: Path, answers: Path) -> str | None:
    """What is wrong with a finished evaluation's answers, seen from its result, which can be read; None if nothing is.

    Results of earlier versions do not say.
    """
    fields = unsealed(result.read_bytes())
    if _ANSWERS not in fields:
        return None
    try:
        return None if sha256_of(answers) == fields[_ANSWERS] else "is damaged (its checksum differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _is_of_another_schema(fields: dict[str, Any]) -> bool:
    """The first schema had no number."""
    if not {"settings", "model_fingerprint"} <= fields.keys():
        return False
    return fields.get("schema_version") not in get_args(EvalSubject.model_fields["schema_version"].annotation)

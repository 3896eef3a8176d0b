"""What the harness is told, as records: `--model_args` of a run, generation settings of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import ValidationError, field_validator, model_validator

from t3d.config.base import Config, first_fault
from t3d.errors import RequestError
from t3d.types import Decoding

DEFAULT_MAX_NEW_TOKENS = 256
"""Of a task that does not say: what the harness' other models take."""
MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What the harness' tasks and models call `max_new_tokens`."""
HARNESS_DEFAULTS = {"batch_size": 1, "device": "cuda:0"}
"""What the harness' command line passes when nothing was typed; a batch size that was typed arrives as a string."""

Arguments = TypeVar("Arguments", bound="DecodingArguments")


class DecodingArguments(Config):
    """Settings of `Decoding` under their own names; None leaves one open."""

    block_size: int | None = None
    steps_per_block: int | None = None
    rule: str | None = None
    threshold: float | None = None
    entropy_bound: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_the_length(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        given = [name for name in MAX_TOKENS_NAMES if name in fields]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are the same: give {given[0]} alone")
        return {"max_new_tokens" if name in given else name: value for name, value in fields.items()}

    def over(self, decoding: Decoding) -> Decoding:
        """`decoding`, with what is said here in place of its own."""
        said = {name: getattr(self, name) for name in DecodingArguments.model_fields}
        return replace(decoding, **{name: value for name, value in said.items() if value is not None})


class ModelArguments(DecodingArguments):
    """`--model_args` of a run: the model, what it runs on, and what requests leave open of their decoding.

    Attributes:
        pretrained: folder, hub id or built-in name.
        dtype, device, backend, memory_gib: as in `Engine.from_pretrained`.
        batch_size: requests decoded together; None, or "auto", is what memory allows.
        seed: of everything drawn at random.
        trust_remote_code: what the harness adds for `--trust_remote_code`, which is for its data sets: a model's code
            always comes from this package.
    """

    pretrained: str
    dtype: str | None = None
    device: str | None = None
    batch_size: int | None = None
    backend: str | None = None
    memory_gib: float | None = None
    seed: int = 0
    trust_remote_code: bool = False

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_is_none(cls, value: Any) -> Any:
        return None if _is_auto(value) else value

    @property
    def decoding(self) -> Decoding:
        """What requests leave open."""
        return self.over(Decoding(max_new_tokens=DEFAULT_MAX_NEW_TOKENS, seed=self.seed))


class RequestArguments(DecodingArguments):
    """Generation settings of one request: the task's, changed by `--gen_kwargs`.

    Attributes:
        until: strings that end the response and are no part of it.
        do_sample: False is greedy, whatever the temperature says.
        num_beams: some tasks ask for one beam by name.
    """

    until: tuple[str, ...] = ()
    do_sample: bool | None = None
    num_beams: Literal[1] = 1

    @field_validator("until", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()

    def decoding(self, default: Decoding, stop_token_ids: tuple[int, ...]) -> Decoding:
        """How to decode the request: as it says, and as `default` says where it does not."""
        asked = replace(self.over(default), stop_token_ids=stop_token_ids)
        if self.do_sample is False:
            return replace(asked, temperature=0.0)
        if self.do_sample and self.temperature is None and asked.temperature == 0:
            return replace(asked, temperature=1.0)  # as transformers does where only sampling is asked for
        return asked


def model_arguments(model_args: Mapping[str, Any], options: Mapping[str, Any]) -> ModelArguments:
    """`--model_args`, and the harness' own options for what they leave open.

    Args:
        model_args: as they were written.
        options: `device`, `batch_size` and `max_batch_size` of the harness, each maybe None. `HARNESS_DEFAULTS` count
            as not given.

    Raises:
        RequestError: unknown or wrong, in one line.
    """
    said = {name: value for name, value in options.items() if value != HARNESS_DEFAULTS.get(name)}
    batch_size = said.get("batch_size")
    if batch_size is None or _is_auto(batch_size):
        batch_size = said.get("max_batch_size")
    return _checked(
        ModelArguments, {"device": said.get("device"), "batch_size": batch_size, **model_args}, "model_args"
    )


def request_arguments(generation_kwargs: Mapping[str, Any]) -> RequestArguments:
    """The generation settings of one request.

    Raises:
        RequestError: unknown or wrong, in one line.
    """
    return _checked(RequestArguments, generation_kwargs, "gen_kwargs")


def _is_auto(batch_size: Any) -> bool:
    """Whether the harness is to find out: "auto", or "auto:N" for how often."""
    return isinstance(batch_size, str) and batch_size.startswith("auto")


def _checked(kind: type[Arguments], fields: Mapping[str, Any], name: str) -> Arguments:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.kind == "missing":
            raise RequestError(f"{name}: {fault.field} is missing: write {fault.field}=...") from error
        if fault.kind == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise RequestError(f"{name}: unknown key {fault.field}: use some of {known}") from error
        raise RequestError(f"{name}: {fault}") from error

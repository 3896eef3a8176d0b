"""What clients may ask: OpenAI's requests with this engine's own fields, checked without any conversion."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from t3d.serve.errors import ApiError
from t3d.serve.fields import MAX_STOPS, prompts_of, rule_of, stops_of, text_of, without_neutral, without_nulls

MAX_SAMPLES = 16
MAX_MESSAGES = 1024
MAX_TOKENS = 2**20
SHOWN_CHARACTERS = 40

Fraction = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream is to hold besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Message(_Strict):
    """A turn of a chat; a developer's is a system's."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(text_of)]

    _leave_out_nulls = model_validator(mode="before")(without_nulls)


class GenerationRequest(_Strict):
    """What both kinds of request have. A field that is null or left out takes the server's default."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[list[str], BeforeValidator(stops_of)] = []
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_STOPS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    steps_per_block: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    rule: Annotated[str | None, AfterValidator(rule_of)] = None
    threshold: Fraction | None = None
    entropy_bound: Annotated[float, Field(ge=0, le=1000)] | None = None
    return_trajectory: bool | None = None

    _leave_out_neutral = model_validator(mode="before")(without_neutral)

    @model_validator(mode="after")
    def _check_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: set stream to true, or leave it out")
        return self

    @property
    def num_samples(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(prompts_of)]
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.num_samples):
            raise ValueError("best_of must equal n: this server returns every answer that it makes")
        return self


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs not in (None, 0):
            raise ValueError("top_logprobs must be 0: only the chosen tokens' probabilities are known")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self


Asked = TypeVar("Asked", bound=GenerationRequest)


def parse(kind: type[Asked], body: bytes) -> Asked:
    """A request from its body.

    Raises:
        ApiError: 400, one line that names the field and the cure.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False)[0]) from error


def _api_error(error: ErrorDetails) -> ApiError:
    path = [str(part) for part in error["loc"]]
    field = ".".join(path)
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {context['error']}", code="invalid_json")
        case "extra_forbidden":
            return ApiError(400, f"{_shown(field)} is not a field of this request: leave it out", field[:100])
        case "missing":
            return ApiError(400, f"{field} is missing: give it", field)
        case "unsupported":
            return ApiError(400, error["msg"], context["param"], code="unsupported")
        case "value_error":
            message = str(context["error"])
            return ApiError(400, message, field or message.split(" ", 1)[0])
        case "model_type":
            return ApiError(400, f"{field or 'the body'} must be a JSON object", field or None)
    message = error["msg"][:1].lower() + error["msg"][1:]
    given = "" if isinstance(error["input"], list) else f", not {_shown(error['input'])}"
    return ApiError(400, f"{field}: {message}{given}", field)


def _shown(value: Any) -> str:
    """A value as a message can hold it."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…")
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 2 * SHOWN_CHARACTERS):
        return str(value)
    return "a number of so many digits" if isinstance(value, int) else "an object"

"""What clients are told: OpenAI's objects with this engine's own fields, as plain dictionaries."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Usage(TypedDict):
    """Tokens of a request: each prompt once, all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Facts(TypedDict):
    """How an answer is decoded, and once it is over what it cost."""

    prompt_tokens: int
    block_size: int
    steps_per_block: int
    rule: str
    threshold: float
    seed: int
    forwards: NotRequired[int]
    tokens_per_forward: NotRequired[float]
    seconds: NotRequired[float]


class TrajectoryPart(TypedDict):
    """One entry a token, the stop token included: when (1-based step of the request) and how surely it was revealed."""

    token_ids: list[int]
    tokens: list[str]
    reveal_steps: list[int]
    confidences: list[float]


class CompletionLogprobs(TypedDict):
    """One entry a token, the stop token included."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TokenLogprob(TypedDict):
    """A token of a chat's answer; `bytes` is null where it is no whole character."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """One entry a token, the stop token included."""

    content: list[TokenLogprob]
    refusal: None


class Delta(TypedDict, total=False):
    """What an event adds to a chat's message."""

    role: Literal["assistant"]
    content: str


class ChatMessage(TypedDict):
    """A chat's whole answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(TypedDict):
    """One answer, or what an event adds to it; a completion has `text`, a chat `message` or (in events) `delta`."""

    index: int
    text: NotRequired[str]
    message: NotRequired[ChatMessage]
    delta: NotRequired[Delta]
    logprobs: CompletionLogprobs | ChatLogprobs | None
    finish_reason: str | None
    t3d: NotRequired[Facts]
    trajectory: NotRequired[TrajectoryPart]


class Answer(TypedDict):
    """A response, or an event of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: NotRequired[Usage | None]


class Defaults(TypedDict):
    """What requests that leave a field out get."""

    steps_per_block: int
    rule: str
    threshold: float
    temperature: float
    max_tokens: int


class ModelFacts(TypedDict):
    """What this server says of a model besides."""

    block_size: int
    max_positions: int
    has_chat_template: bool
    defaults: Defaults


class ModelCard(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["t3d"]
    t3d: ModelFacts


class ModelList(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]

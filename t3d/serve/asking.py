"""From a request to what the engine is asked for: one `Ask` for each answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from t3d.noise import derive_seeds
from t3d.serve.errors import ApiError
from t3d.serve.models import ServedModel
from t3d.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest
from t3d.types import Decoding

SEED_LIMIT = 2**53
"""Of the seeds made here: any JSON reader holds them exactly."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is asked for.

    Attributes:
        prompt_ids: the prompt.
        decoding: settings, its seed and stop ids included.
        stops: strings that end the answer.
        needs_offsets: each token's place in the text is wanted.
    """

    prompt_ids: list[int]
    decoding: Decoding
    stops: Sequence[str] = ()
    needs_offsets: bool = False


def asks_of(request: GenerationRequest, prompts: Sequence[list[int]], model: ServedModel) -> list[Ask]:
    """The answers that a request asks for: those to the first prompt, then those to the second, and so on.

    Raises:
        ApiError: 400, what does not suit the model.
        RequestError: likewise.
    """
    decoding = _decoding(request, model)
    _check_logprobs(request, decoding)
    seeds = sample_seeds(secrets.randbelow(SEED_LIMIT) if request.seed is None else request.seed, request.num_samples)
    needs_offsets = isinstance(request, CompletionRequest) and request.logprobs is not None
    asks = []
    for place, prompt in enumerate(prompts):
        fitting = replace(decoding, max_new_tokens=_num_new_tokens(request, len(prompt), place, model))
        model.engine.check(prompt, fitting, seeds[0])
        asks += [Ask(prompt, replace(fitting, seed=seed), request.stop, needs_offsets) for seed in seeds]
    return asks


def sample_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a prompt's samples: the first has the request's own, sample i one hashed from (it, i)."""
    return [seed, *(derived % SEED_LIMIT for derived in derive_seeds(seed, count)[1:])]


def _decoding(request: GenerationRequest, model: ServedModel) -> Decoding:
    own = model.defaults
    steps = _first(request.steps_per_block, own.steps_per_block or model.block_size)
    if steps > model.block_size:
        raise ApiError(
            400,
            f"steps_per_block must be at most the model's block size ({model.block_size}), not {steps}",
            "steps_per_block",
        )
    return replace(
        own,
        steps_per_block=steps,
        rule=_first(request.rule, own.rule),
        temperature=_first(request.temperature, own.temperature),
        top_k=_first(request.top_k, own.top_k),
        top_p=_first(request.top_p, own.top_p),
        threshold=_first(request.threshold, own.threshold),
        entropy_bound=_first(request.entropy_bound, own.entropy_bound),
        stop_token_ids=tuple(request.stop_token_ids or ()),
    )


def _check_logprobs(request: GenerationRequest, decoding: Decoding) -> None:
    if not isinstance(request, CompletionRequest) or request.logprobs in (None, 0):
        return
    if request.logprobs > 1 or decoding.temperature > 0:
        raise ApiError(
            400,
            "logprobs must be 0, or 1 where temperature is 0: only the chosen tokens' probabilities are known",
            "logprobs",
        )


def _num_new_tokens(request: GenerationRequest, num_prompt_tokens: int, place: int, model: ServedModel) -> int:
    """What was asked for; else the default, or less where the model has no room for that."""
    asked = request.max_tokens
    if asked is None and isinstance(request, ChatRequest):
        asked = request.max_completion_tokens
    room = model.max_positions - num_prompt_tokens
    if room >= (asked or 1):
        return asked or min(model.defaults.max_new_tokens, room)
    wanted = f" and max_tokens is {asked}" if asked else ""
    raise ApiError(
        400,
        f"prompt {place} has {num_prompt_tokens} tokens{wanted}, but model {model.name} has room for "
        f"{model.max_positions} together: shorten {'one of them' if asked else 'the prompt'}",
        "max_tokens" if asked and room > 0 else "messages" if isinstance(request, ChatRequest) else "prompt",
        "context_length_exceeded",
    )


def _first(asked: Value | None, default: Value) -> Value:
    return default if asked is None else asked

"""Values of request fields that come in several forms, and the fields whose feature is not here."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

from t3d.engine.rules import RULES

MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
"""Characters of a stop string."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""OpenAI's fields that nothing here stands behind, and the values at which they ask for nothing."""
IGNORED = ("user", "safety_identifier", "prompt_cache_key")
"""OpenAI's fields that say who asks; any value is taken."""


def without_neutral(data: Any) -> Any:
    """A request's fields without those that ask for nothing."""
    if not isinstance(data, dict):
        return data
    for name, allowed in NEUTRAL.items():
        if name in data and not any(_is_same(data[name], value) for value in allowed):
            raise PydanticCustomError(
                "unsupported", "{param} is not supported by this server: leave it out", {"param": name}
            )
    return {name: value for name, value in data.items() if name not in NEUTRAL and name not in IGNORED}


def _is_same(value: Any, other: Any) -> bool:
    """Equality in which false is not 0."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def prompts_of(value: Any) -> list[str | list[int]]:
    """The prompts of a completion, one entry each: text or token ids."""
    match value:
        case str():
            return [value]
        case [] | [[], *_]:
            raise ValueError("prompt is empty: give at least one token")
        case [str(), *_] if all(isinstance(each, str) for each in value):
            prompts: list[str | list[int]] = list(value)
        case [int(), *_] if _are_ids(value):
            return [value]
        case [list(), *_] if all(isinstance(each, list) and _are_ids(each) for each in value):
            prompts = list(value)
        case _:
            raise ValueError("prompt must be a string, a list of strings, a list of token ids or a list of such lists")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"prompt has {len(prompts)} prompts: send at most {MAX_PROMPTS} in a request")
    return prompts


def stops_of(value: Any) -> list[str]:
    """Stop strings."""
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise ValueError("stop must be a string or a list of strings (ids go into stop_token_ids)")
    if len(stops) > MAX_STOPS or any(not 0 < len(each) <= MAX_STOP_LENGTH for each in stops):
        raise ValueError(f"stop takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters")
    return stops


def text_of(value: Any) -> str:
    """The content of a chat message: a string, or parts that are all text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("content must be a string or a list of text parts")
    return "".join(_text_of_part(part) for part in value)


def _text_of_part(part: Any) -> str:
    match part:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return text
        case {"type": str(kind)} if kind != "text":
            raise ValueError(f"content of type {kind[:40]!r} is not supported: send text parts only")
    raise ValueError('content parts look like {"type": "text", "text": "..."}')


def rule_of(value: str | None) -> str | None:
    """The name of a rule."""
    if value is not None and value not in RULES:
        raise ValueError(f"rule {value[:40]!r} is unknown: use one of {', '.join(RULES)}")
    return value


def without_nulls(message: Any) -> Any:
    """A message as clients send an answer back: empty fields that nothing here stands behind are left out."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name in ("role", "content") or value not in (None, [])}


def _are_ids(values: list[Any]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in values)

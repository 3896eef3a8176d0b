"""Prompts and chats to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from t3d.config import PromptConfig
from t3d.serve.errors import ApiError
from t3d.serve.models import ServedModel
from t3d.serve.protocol import ChatRequest, CompletionRequest, Message
from t3d.tasks.prompts import render, render_chat, resolve_form
from t3d.types import Problem

INLINE_CHARACTERS = 2**13
"""A longer text is tokenised beside the event loop."""

Result = TypeVar("Result")


async def prompts_of_completion(request: CompletionRequest, model: ServedModel) -> list[list[int]]:
    """The token ids of each prompt; text is tokenised as it is."""
    size = sum(len(each) for each in request.prompt if isinstance(each, str))
    return await _beside(size, lambda: [_ids(each, model) for each in request.prompt])


async def prompts_of_chat(request: ChatRequest, model: ServedModel) -> list[list[int]]:
    """The token ids of a chat's one prompt.

    Raises:
        RequestError: the chat template refuses.
        ApiError: the model has none, and this is more than one question.
    """
    size = sum(len(message.content) for message in request.messages)
    return await _beside(size, lambda: [_ids(chat_text(request.messages, model), model)])


def chat_text(messages: list[Message], model: ServedModel) -> str:
    """The text of a chat: by the model's template, or of its one question as `t3d generate` puts it."""
    if model.has_chat_template:
        turns = [{"role": _role(message), "content": message.content} for message in messages]
        return render_chat(turns, model.tokenizer)
    if [message.role for message in messages] != ["user"]:
        raise ApiError(
            400,
            f"model {model.name} has no chat template: send one message of role user, or a prompt to /v1/completions",
            "messages",
        )
    form = resolve_form(PromptConfig(), PromptConfig(), model.tokenizer)
    return render(Problem("0", messages[0].content), form, model.tokenizer).text


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    return model.tokenizer.encode(prompt, add_special_tokens=False)


async def _beside(size: int, work: Callable[[], Result]) -> Result:
    return work() if size <= INLINE_CHARACTERS else await asyncio.to_thread(work)

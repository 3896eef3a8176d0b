"""Answers in OpenAI's shapes: whole, or as the events of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

from t3d.serve.detokenizing import HALF
from t3d.serve.jobs import Draft, Job
from t3d.serve.models import ServedModel
from t3d.serve.responses import (
    Answer,
    ChatLogprobs,
    Choice,
    CompletionLogprobs,
    Facts,
    ModelCard,
    TokenLogprob,
    TrajectoryPart,
    Usage,
)
from t3d.serve.writing import Piece

LEAST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have."""


def whole_answer(job: Job, drafts: Sequence[Draft]) -> Answer:
    """The response that is not streamed."""
    choices = []
    for index, draft in enumerate(drafts):
        piece = draft.whole()
        choice = _choice(job, index, piece)
        if job.is_chat:
            choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
        else:
            choice["text"] = piece.text
        choice["finish_reason"] = piece.end.finish_reason if piece.end else None
        choice["t3d"] = facts(job, index, draft)
        choices.append(choice)
    answer = _answer(job, choices, is_event=False)
    answer["usage"] = job.usage(sum(draft.num_tokens for draft in drafts))
    return answer


def first_event(job: Job, index: int) -> Answer:
    """A choice begins."""
    choice = _empty_choice(job, index, is_first=True)
    choice["t3d"] = facts(job, index)
    return _answer(job, [choice], is_event=True)


def block_event(job: Job, index: int, piece: Piece) -> Answer:
    """A block of a choice is finished."""
    choice = _choice(job, index, piece)
    if job.is_chat:
        choice["delta"] = {"content": piece.text}
    else:
        choice["text"] = piece.text
    return _answer(job, [choice], is_event=True)


def last_event(job: Job, index: int, draft: Draft) -> Answer:
    """A choice is over."""
    assert draft.end is not None
    choice = _empty_choice(job, index, is_first=False)
    choice["finish_reason"] = draft.end.finish_reason
    choice["t3d"] = facts(job, index, draft)
    return _answer(job, [choice], is_event=True)


def usage_event(job: Job, usage: Usage) -> Answer:
    """What all choices took together."""
    answer = _answer(job, [], is_event=True)
    answer["usage"] = usage
    return answer


def facts(job: Job, index: int, draft: Draft | None = None) -> Facts:
    """How a choice is decoded; of one that is over, what it cost."""
    ask = job.asks[index]
    told: Facts = {
        "prompt_tokens": len(ask.prompt_ids),
        "block_size": job.model.block_size,
        "steps_per_block": ask.decoding.steps_per_block or job.model.block_size,
        "rule": ask.decoding.rule,
        "threshold": ask.decoding.threshold,
        "seed": ask.decoding.seed,
    }
    if draft is not None and draft.end is not None:
        told["forwards"] = draft.end.num_forwards
        told["tokens_per_forward"] = draft.num_tokens / max(1, draft.end.num_forwards)
        told["seconds"] = draft.end.seconds
    return told


def model_card(model: ServedModel) -> ModelCard:
    """What is told about a served model."""
    defaults = model.defaults
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "t3d",
        "t3d": {
            "block_size": model.block_size,
            "max_positions": model.max_positions,
            "has_chat_template": model.has_chat_template,
            "defaults": {
                "steps_per_block": defaults.steps_per_block or model.block_size,
                "rule": defaults.rule,
                "threshold": defaults.threshold,
                "temperature": defaults.temperature,
                "max_tokens": defaults.max_new_tokens,
            },
        },
    }


def _answer(job: Job, choices: list[Choice], is_event: bool) -> Answer:
    kind = "chat.completion" if job.is_chat else "text_completion"
    answer: Answer = {
        "id": f"{'chatcmpl' if job.is_chat else 'cmpl'}-{job.name}",
        "object": f"{kind}.chunk" if job.is_chat and is_event else kind,
        "created": job.created,
        "model": job.model.name,
        "choices": choices,
    }
    if is_event and job.request.wants_usage:
        answer["usage"] = None
    return answer


def _empty_choice(job: Job, index: int, is_first: bool) -> Choice:
    choice: Choice = {"index": index, "logprobs": None, "finish_reason": None}
    if not job.is_chat:
        choice["text"] = ""
    elif is_first:
        choice["delta"] = {"role": "assistant", "content": ""}
    else:
        choice["delta"] = {}
    return choice


def _choice(job: Job, index: int, piece: Piece) -> Choice:
    """A choice without its text."""
    choice: Choice = {"index": index, "logprobs": _logprobs(job, piece), "finish_reason": None}
    if job.request.return_trajectory:
        choice["trajectory"] = _trajectory(job.model, piece)
    return choice


def _trajectory(model: ServedModel, piece: Piece) -> TrajectoryPart:
    return {
        "token_ids": piece.token_ids,
        "tokens": _token_texts(model, piece),
        "reveal_steps": piece.reveal_steps,
        "confidences": piece.confidences,
    }


def _token_texts(model: ServedModel, piece: Piece) -> list[str]:
    return [model.token_text(token) for token in piece.token_ids]


def _logprobs(job: Job, piece: Piece) -> CompletionLogprobs | ChatLogprobs | None:
    """ln of the confidences, if they are wanted."""
    asked = getattr(job.request, "logprobs", None)  # a bool of chats, a number of completions
    if asked is None or asked is False:
        return None
    tokens = _token_texts(job.model, piece)
    values = [math.log(each) if each > 0 else LEAST_LOGPROB for each in piece.confidences]
    if job.is_chat:
        return {"content": [_token_logprob(*each) for each in zip(tokens, values, strict=True)], "refusal": None}
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)] if asked else None,
        "text_offset": piece.offsets,
    }


def _token_logprob(token: str, logprob: float) -> TokenLogprob:
    return {
        "token": token,
        "logprob": logprob,
        "bytes": None if HALF in token else list(token.encode()),
        "top_logprobs": [],
    }

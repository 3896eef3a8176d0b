"""One answer of the public code, a text and its step map -> tokens and reveal steps, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from t3d.interop.upstream.steps import check_blocks, numbered_through, per_block
from t3d.interop.upstream.tally import RefusedError
from t3d.types import Decoding

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How texts become tokens.

    Attributes:
        tokenizer: of the model that was rolled out.
        mask_token_id: of that model.
        stop_token_ids: all that end a response. The public engine itself stopped at the tokenizer's only.
    """

    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    stop_token_ids: frozenset[int]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that the public engine saw (`llm_engine.py`, `add_request`).

        Raises:
            RefusedError: it saw others: what stands behind the last padding token of the prompt.
        """
        if not is_unicode(prompt):
            raise RefusedError("no_prompt")
        ids: list[int] = self.tokenizer.encode(prompt)
        if self.tokenizer.pad_token_id in ids:
            raise RefusedError("prompt_cut")
        return ids

    def response_ids(self, text: str) -> list[int]:
        """The tokens of a response.

        Raises:
            RefusedError: the text cannot be what the engine's tokens were decoded to.
        """
        if _REPLACEMENT in text or not is_unicode(text):
            raise RefusedError("no_unicode")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if self.tokenizer.decode(ids, skip_special_tokens=False) != text:
            raise RefusedError("changed_text")
        return ids


@dataclass(slots=True)
class Answer:
    """What was read.

    Attributes:
        ids, steps: int [L], of each response token, the stop token included.
        repairs, doubts: kinds of what was done, and of what nobody knows.
    """

    ids: list[int]
    steps: list[int]
    repairs: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_answer(text: object, steps: object, prompt_length: int, vocabulary: Vocabulary, decoding: Decoding) -> Answer:
    """An answer whose steps fit its tokens and the blocks behind its prompt.

    Args:
        text, steps: as they stand in the file.
        prompt_length: tokens.
        vocabulary: of the model.
        decoding: that the rollout asked for, resolved.

    Raises:
        RefusedError: there is damage that cannot be repaired.
    """
    if not isinstance(text, str):
        raise RefusedError("not_text")
    if not text:
        raise RefusedError("empty")
    if steps is None or steps == "" or steps == []:
        raise RefusedError("no_steps")
    answer = Answer(vocabulary.response_ids(text), [])
    answer.steps = _whole_numbers(steps, answer.repairs)
    _cut_at_stop(answer, vocabulary)
    if vocabulary.mask_token_id in answer.ids:
        raise RefusedError("mask_tokens")
    if min(answer.steps) < 1:
        raise RefusedError("no_step")
    if 0 in answer.ids and 0 not in vocabulary.stop_token_ids:
        if answer.ids[0] == 0:
            raise RefusedError("token_zero")
        answer.doubts.append("token_zero_inside")
    _fit_blocks(answer, prompt_length, decoding)
    return answer


def _cut_at_stop(answer: Answer, vocabulary: Vocabulary) -> None:
    """Cut tokens and steps behind the first stop token, once it is sure that they go together.

    The public engine goes on to the tokenizer's own stop token, past others that `generation_config` names, and maps
    both. Other writers leave padding behind the stop token that no step belongs to.
    """
    ids = answer.ids
    end = next((place + 1 for place, each in enumerate(ids) if each in vocabulary.stop_token_ids), len(ids))
    if len(answer.steps) == len(ids):
        if end < len(ids):
            answer.repairs.append("cut_at_stop")
    else:
        padding = {*vocabulary.stop_token_ids, vocabulary.tokenizer.pad_token_id, vocabulary.mask_token_id}
        if len(answer.steps) != end or not padding.issuperset(ids[end:]):
            raise RefusedError("slipped")
        answer.repairs.append("tail_without_steps")
    answer.ids, answer.steps = ids[:end], answer.steps[:end]


def _fit_blocks(answer: Answer, prompt_length: int, decoding: Decoding) -> None:
    """Check the steps against the blocks, after numbering them through where each block counts anew."""
    assert decoding.block_size is not None
    blocks = per_block(answer.steps, prompt_length, decoding.block_size)
    if (numbered := numbered_through(blocks, decoding.block_size)) is not None:
        answer.repairs.append("counted_per_block")
        answer.steps = [step for block in numbered for step in block]
        blocks = numbered
    check_blocks(blocks, prompt_length, decoding)


def _whole_numbers(steps: object, repairs: list[str]) -> list[int]:
    if not isinstance(steps, list):
        raise RefusedError("not_steps")
    if all(type(step) is int for step in steps):
        return steps
    if not all(type(step) is int or (isinstance(step, float) and step.is_integer()) for step in steps):
        raise RefusedError("not_steps")
    repairs.append("whole_numbers")
    return [int(step) for step in steps]


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    return not any("\ud800" <= each <= "\udfff" for each in text)

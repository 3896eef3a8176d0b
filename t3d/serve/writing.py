"""Finished blocks of tokens to finished pieces of text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from t3d.engine import AsyncEngine
from t3d.engine.tickets import Block
from t3d.errors import WorkError
from t3d.serve.asking import Ask
from t3d.serve.detokenizing import Decode, Detokenizer
from t3d.serve.stopping import StopScanner


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended and what it cost.

    Attributes:
        finish_reason: "stop" or "length".
        num_forwards: of the model, prefill included.
        seconds: from the request's admission to the last token.
    """

    finish_reason: str
    num_forwards: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What a finished block adds to an answer.

    Attributes:
        text: since the last piece; characters and stop strings that are not complete are held back.
        token_ids, reveal_steps, confidences: the block's, as in `Generation`. If a stop string has cut the answer: up
            to the token that completed it.
        offsets: where in the answer's text each token begins; of asks that need it.
        end: with the last piece.
    """

    text: str
    token_ids: list[int]
    reveal_steps: list[int]
    confidences: list[float]
    offsets: list[int]
    end: End | None = None


class Writer:
    """Turns one answer's blocks into pieces.

    Args:
        decode: token ids to text.
        ask: what was asked for.
    """

    def __init__(self, decode: Decode, ask: Ask) -> None:
        self._detokenizer = Detokenizer(decode)
        self._scanner = StopScanner(ask.stops)
        self._one_by_one = bool(ask.stops) or ask.needs_offsets
        self._num_characters = 0

    def take(self, block: Block) -> Piece:
        """The piece of a block.

        Raises:
            WorkError: the answer has failed.
        """
        generation = block.generation
        if generation is not None and generation.error is not None:
            raise WorkError(generation.error)
        ends_by_token = generation is not None and generation.finish_reason == "stop"
        spoken = block.token_ids[:-1] if ends_by_token else block.token_ids
        text, offsets = "", []
        for group in [[token] for token in spoken] if self._one_by_one else [spoken]:
            offsets.append(self._num_characters)
            text += self._scan(self._detokenizer.push(group))
            if self._scanner.has_hit:
                return self._cut(block, text, offsets)
        offsets += [self._num_characters] * ends_by_token
        if generation is None:
            return Piece(text, block.token_ids, block.reveal_steps, block.confidences, offsets)
        text += self._scan(self._detokenizer.flush()) + self._scanner.flush()
        reason = "stop" if self._scanner.has_hit else generation.finish_reason
        end = End(reason, generation.num_forwards, generation.seconds)
        return Piece(text, block.token_ids, block.reveal_steps, block.confidences, offsets, end)

    def _scan(self, text: str) -> str:
        self._num_characters += len(text)
        return self._scanner.push(text)

    @staticmethod
    def _cut(block: Block, text: str, offsets: list[int]) -> Piece:
        """The last piece of an answer that a stop string ends."""
        count = len(offsets)
        end = End("stop", block.num_forwards, block.seconds)
        return Piece(text, block.token_ids[:count], block.reveal_steps[:count], block.confidences[:count], offsets, end)


async def write(engine: AsyncEngine, decode: Decode, ask: Ask) -> AsyncGenerator[Piece, None]:
    """An answer's pieces as they come; the last has an end. Who closes the iterator cancels the request."""
    writer = Writer(decode, ask)
    async with aclosing(engine.stream(ask.prompt_ids, ask.decoding)) as blocks:
        async for block in blocks:
            piece = writer.take(block)
            yield piece
            if piece.end is not None:
                return

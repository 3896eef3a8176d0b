"""A checked request on its way: who answers, what is asked for, and how its answers are to look."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from t3d.serve.asking import Ask
from t3d.serve.models import ServedModel
from t3d.serve.protocol import ChatRequest, GenerationRequest
from t3d.serve.responses import Usage
from t3d.serve.writing import End, Piece


@dataclass(frozen=True)
class Job:
    """A request that is about to run.

    Attributes:
        request: as it came.
        model: that answers.
        prompts: token ids of each.
        asks: one for each choice, in the order of their indices.
        name: `id` of its answers.
        created: seconds since 1970.
    """

    request: GenerationRequest
    model: ServedModel
    prompts: Sequence[list[int]]
    asks: Sequence[Ask]
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        """Which of the two endpoints."""
        return isinstance(self.request, ChatRequest)

    @property
    def endpoint(self) -> str:
        """As metrics call it."""
        return "chat" if self.is_chat else "completions"

    def usage(self, num_completion_tokens: int) -> Usage:
        """Of the request, given its answers' tokens."""
        num_prompt_tokens = sum(map(len, self.prompts))
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
        }


@dataclass
class Draft:
    """An answer as far as it is known.

    Attributes:
        pieces: that have come.
    """

    pieces: list[Piece] = field(default_factory=list)

    @property
    def end(self) -> End | None:
        """Set when it is over."""
        return self.pieces[-1].end if self.pieces else None

    @property
    def num_tokens(self) -> int:
        """Of the answer, its stop token included."""
        return sum(len(piece.token_ids) for piece in self.pieces)

    def whole(self) -> Piece:
        """All pieces as one."""
        pieces = self.pieces
        return Piece(
            "".join(piece.text for piece in pieces),
            [token for piece in pieces for token in piece.token_ids],
            [step for piece in pieces for step in piece.reveal_steps],
            [confidence for piece in pieces for confidence in piece.confidences],
            [offset for piece in pieces for offset in piece.offsets],
            self.end,
        )

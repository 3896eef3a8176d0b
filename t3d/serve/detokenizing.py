"""Token ids to text as they come: never half a character, and together the text of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"
"""What decoders put for bytes that are no character, or none yet."""

Decode = Callable[[list[int]], str]


class Detokenizer:
    """The text of a growing response.

    Only tokens near the end are decoded again, so that a response costs time in its length. Some before the new ones
    stay in the window, because decoders may treat a text's first token differently.

    Args:
        decode: token ids to text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_context = 0  # tokens of the window up to the last push but one that ended with a whole character
        self._num_told = 0  # characters of the window's text that are out

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens add; what may be half a character is held back."""
        self._window += token_ids
        text = self._decode(self._window)
        whole = text.rstrip(HALF)
        new = whole[self._num_told :]
        self._num_told = max(self._num_told, len(whole))
        if whole == text:
            self._shorten()
        return new

    def flush(self) -> str:
        """What was held back: the response is over."""
        new = self._decode(self._window)[self._num_told :]
        self._window, self._num_context, self._num_told = [], 0, 0
        return new

    def _shorten(self) -> None:
        """Drop the tokens of the window that the next ones cannot change."""
        rest = self._window[self._num_context :]
        text = self._decode(rest)
        if text:  # else the next token would be the window's first
            self._window, self._num_told = rest, len(text)
        self._num_context = len(self._window)

"""Stop strings: where they end a text, and which of them can end decoding itself."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """`text` up to the first place where any of the strings stands; an empty string stops nothing."""
    places = [text.find(stop) for stop in until if stop]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, until: Sequence[str]) -> tuple[int, ...]:
    """Tokens that are a stop string by themselves: a response that has one is cut there or before.

    Ending decoding at them saves forwards and changes no text. A stop string can also come about from several tokens,
    so the text is to be cut all the same.
    """
    encoded = ((stop, tokenizer.encode(stop, add_special_tokens=False)) for stop in until if stop)
    return tuple(sorted({ids[0] for stop, ids in encoded if len(ids) == 1 and tokenizer.decode(ids) == stop}))

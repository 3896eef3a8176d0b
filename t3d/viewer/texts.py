"""The text of single tokens: from a tokenizer on this machine, else from the responses' characters, else none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from t3d.errors import RequestError
from t3d.models import has_tokenizer, load_tokenizer, resolve_model, tokenizer_fingerprint
from t3d.trajectories import TrajectoryMeta
from t3d.types import Trajectory


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Texts of some ids.

    Attributes:
        source: one sentence for people: where the texts are from.
        by_id: an id that is not in it has no text, and is shown as a number.
    """

    source: str
    by_id: dict[int, str]


def token_texts(rows: Sequence[Trajectory], meta: TrajectoryMeta, tokenizer: str | None = None) -> TokenTexts:
    """The text of every id of the responses, as far as it can be had without a network.

    Args:
        rows: responses of one tokenizer.
        meta: of their file; its model's own tokenizer is taken where that is in a folder here, or built in.
        tokenizer: folder or built-in name of another place to take it from.

    Raises:
        RequestError: `tokenizer` is not on this machine, or is not the one that the ids belong to.
    """
    ids = sorted({token for row in rows for token in row.response_ids})
    if tokenizer is not None and not _is_here(tokenizer):
        raise RequestError(f"--tokenizer {tokenizer}: give a folder that holds one, or the name of a built-in model")
    place = tokenizer or meta.model
    if _is_here(place):
        texts = _decoded(ids, place, meta.tokenizer_fingerprint)
        if texts is not None:
            return TokenTexts(f"Token texts are from the tokenizer of {place}.", texts)
        if tokenizer is not None:
            raise RequestError(f"--tokenizer {tokenizer}: is not the tokenizer that these token ids belong to")
    characters = _characters(rows, meta.eos_token_ids)
    if characters is not None:
        return TokenTexts("No tokenizer at hand; each token is a character of its response's text.", characters)
    return TokenTexts("No tokenizer at hand; tokens are shown as ids (--tokenizer names a folder with one).", {})


def _is_here(place: str) -> bool:
    """Whether a tokenizer can be read without a network."""
    return os.path.isdir(resolve_model(place)) and has_tokenizer(place)  # False of what is no path at all


def _decoded(ids: Iterable[int], place: str, fingerprint: str) -> dict[int, str] | None:
    """Each id decoded by itself; None if the tokenizer there is another one."""
    tokenizer = load_tokenizer(place)
    if tokenizer_fingerprint(tokenizer) != fingerprint:
        return None
    return {each: tokenizer.decode([each], skip_special_tokens=False) for each in ids if each < len(tokenizer)}


def _characters(rows: Sequence[Trajectory], stop_ids: Sequence[int]) -> dict[int, str] | None:
    """One character an id, if all rows allow that: as many as tokens, and always the same for the same id."""
    found: dict[int, str] = {}
    for row in rows:
        ids = list(row.response_ids)
        if ids and ids[-1] in stop_ids:
            ids.pop()
        if len(ids) != len(row.response_text):
            return None
        if any(found.setdefault(token, text) != text for token, text in zip(ids, row.response_text, strict=True)):
            return None
    return found

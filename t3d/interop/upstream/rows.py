"""The rows of the public code's rollouts -> trajectories, with a tally of what was damaged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from t3d.errors import RequestError
from t3d.interop.upstream.answers import Answer, Vocabulary, is_unicode, read_answer
from t3d.interop.upstream.tally import DamageMode, RefusedError, Tally
from t3d.types import Decoding, Trajectory

_ANSWERS = ("full_output", "answer")  # before and after its `rename_key.py`


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in the file, with its prompt's tokens.

    Attributes:
        prompt, prompt_ids: as the engine saw it.
        pairs: each answer with its step map, whatever these are.
        is_listed: whether answers and maps are lists of such, as the public code writes them.
        reference: the reference answer, if there is one.
    """

    prompt: str
    prompt_ids: list[int]
    pairs: list[tuple[Any, Any]]
    is_listed: bool
    reference: str | None


def read_row(value: object, vocabulary: Vocabulary) -> Row:
    """A row of the file; raises `RefusedError` if nothing in it can be used."""
    if not isinstance(value, dict):
        raise RefusedError("not_a_row")
    prompt = value.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RefusedError("no_prompt")
    texts = next((value[name] for name in _ANSWERS if value.get(name) is not None), None)
    if texts is None or texts == []:
        raise RefusedError("no_answers")
    pairs, is_listed = _pairs(texts, value.get("step_map"))
    return Row(prompt, vocabulary.prompt_ids(prompt), pairs, is_listed, _reference(value.get("ground_truth_answer")))


def _pairs(texts: Any, maps: Any) -> tuple[list[tuple[Any, Any]], bool]:
    """Each answer with its map, and whether both are in lists; one answer may stand alone, and so may its map."""
    if not maps:
        raise RefusedError("no_steps")
    listed = isinstance(texts, list) and isinstance(maps, list) and not _is_number(maps[0])
    if not isinstance(texts, list):
        texts = [texts]
    if not isinstance(maps, list) or _is_number(maps[0]):
        maps = [maps]
    if len(texts) != len(maps):
        raise RefusedError("uneven")
    return list(zip(texts, maps, strict=True)), listed


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _reference(value: object) -> str | None:
    if isinstance(value, str):
        return value if is_unicode(value) else None
    return str(value) if _is_number(value) and abs(value) < 2**63 else None  # type: ignore[arg-type]


@dataclass(slots=True)
class RowConverter:
    """Converts the rows of one file, in order.

    Attributes:
        vocabulary: of the model.
        decoding: that the rollout asked for, resolved.
        on_damage: repair what leaves no doubt and refuse the rest; refuse both; or stop at the first damage.
        tally: what became of the answers so far.
    """

    vocabulary: Vocabulary
    decoding: Decoding
    on_damage: DamageMode
    tally: Tally = field(default_factory=Tally)
    _rows_of: dict[bytes, int] = field(default_factory=dict)

    def convert(self, value: object, number: int) -> Iterator[Trajectory]:
        """The trajectories of row `number`, counted from 0.

        Raises:
            RequestError: damage, where `on_damage` is stop.
        """
        self.tally.num_rows += 1
        try:
            row = read_row(value, self.vocabulary)
        except RefusedError as refused:
            self.refuse(refused, str(number))
            return
        for sample, (text, steps) in enumerate(row.pairs):
            place = f"{number}/{sample}" if len(row.pairs) > 1 else str(number)
            try:
                answer = read_answer(text, steps, len(row.prompt_ids), self.vocabulary, self.decoding)
                if not row.is_listed:
                    answer.repairs.append("no_list")
                self._accept(row, answer, number)
            except RefusedError as refused:
                self.refuse(refused, place)
                continue
            yield self._kept(row, answer, number, sample, place)

    def refuse(self, refused: RefusedError, place: str) -> None:
        """Count a refusal; raises `RequestError` where `on_damage` is stop."""
        if self.on_damage == "stop":
            raise RequestError(f"row {place}: {refused}; --on-damage repair counts such rows and goes on")
        self.tally.refuse(refused.kind, place)

    def _accept(self, row: Row, answer: Answer, number: int) -> None:
        """Raise `RefusedError` for what was repaired where no repairs are wanted, and for a copy of what was kept."""
        if self.on_damage != "repair" and (found := answer.repairs + answer.doubts):
            raise RefusedError(found[0])
        parts = json.dumps([row.prompt, answer.ids, answer.steps]).encode()
        if self._rows_of.setdefault(hashlib.sha256(parts).digest(), number) != number:
            raise RefusedError("duplicate")

    def _kept(self, row: Row, answer: Answer, number: int, sample: int, place: str) -> Trajectory:
        for kind in answer.repairs:
            self.tally.repair(kind, place)
        for kind in answer.doubts:
            self.tally.doubt(kind, place)
        is_finished = answer.ids[-1] in self.vocabulary.stop_token_ids
        self.tally.num_kept += 1
        self.tally.num_unfinished += not is_finished
        return Trajectory(
            prompt_id=str(number),
            sample=sample,
            prompt_ids=row.prompt_ids,
            response_ids=answer.ids,
            reveal_step=answer.steps,
            confidence=[math.nan] * len(answer.ids),
            num_forwards=_num_forwards(answer, len(row.prompt_ids), self.decoding),
            finish_reason="stop" if is_finished else "length",
            prompt_text=row.prompt,
            response_text=self.vocabulary.tokenizer.decode(answer.ids, skip_special_tokens=True),
            answer=row.reference,
            seed=0,
        )


def _num_forwards(answer: Answer, prompt_length: int, decoding: Decoding) -> int:
    """Passes of the public engine: a prefill, each step, and one more a block to store its keys.

    The last steps of the last block are not counted where they revealed nothing that is kept.
    """
    assert decoding.block_size is not None
    first, last = prompt_length // decoding.block_size, (prompt_length + len(answer.ids) - 1) // decoding.block_size
    return int(first > 0) + max(answer.steps) + last - first + 1

"""What is found wrong in a file of the public code, by kind, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

DamageMode = Literal["repair", "refuse", "stop"]
DAMAGE_MODES = get_args(DamageMode)
FIRST_FEW = 5
"""Places that are named of each kind."""

REPAIRS = {
    "no_list": "answer or step map not in a list of answers",
    "whole_numbers": "steps written as 3.0",
    "cut_at_stop": "text goes on after the first stop token: cut there, with its steps",
    "tail_without_steps": "padding after the stop token that has no steps: cut",
    "counted_per_block": "steps counted anew in each block: numbered through",
}
"""Damage that leaves no doubt what was there -> what is done."""
REFUSALS = {
    "not_a_row": "row is no group of names",
    "no_prompt": "no rendered prompt: what the model saw is unknown",
    "prompt_cut": "prompt holds the padding token, behind which the public engine began to read",
    "no_answers": "neither full_output nor answer",
    "uneven": "another number of answers than of step maps: which belongs to which is unknown",
    "not_text": "answer is no text",
    "empty": 'answer is "": lost by a worker',
    "no_steps": "no step map",
    "not_steps": "step map holds something else than whole numbers",
    "no_unicode": "text holds U+FFFD or half a character: its tokens are unknown",
    "changed_text": "tokens of the text do not decode to it: not its tokenizer",
    "token_zero": "begins with token 0, which the public code writes for tokens added to a vocabulary (<think>)",
    "slipped": "text has another number of tokens than steps: the map has slipped",
    "mask_tokens": "holds mask tokens before its end",
    "no_step": "a token has no step (0 or less)",
    "order": "steps go backwards from block to block: another prompt's, or another --block-size",
    "jump": "a block's steps leave out numbers, or are more than --steps-per-block: likewise",
    "quota": "steps reveal more or fewer tokens than --steps-per-block and --rule say: likewise",
    "overwritten": "a step revealed more tokens than were masked: it wrote over prompt or answer",
    "duplicate": "same prompt, answer and steps as an earlier row",
    "cut_off": "file breaks off or is damaged: nothing behind is read",
}
"""Damage that nobody can undo -> what it is."""
OFF_THE_GRID = ("order", "jump", "quota")
DOUBTS = {"token_zero_inside": 'holds token 0: "!" of most vocabularies, or a token that the public code lost'}
"""What is kept, since it is good as a rule."""


DESCRIBED = {**REPAIRS, **REFUSALS, **DOUBTS}


class RefusedError(Exception):
    """An answer that is not kept; `kind` is one of `DESCRIBED`."""

    def __init__(self, kind: str) -> None:
        super().__init__(DESCRIBED[kind])
        self.kind = kind


@dataclass(slots=True)
class Cases:
    """How many there are of one kind, and the first places: "12" is row 12, "12/3" its fourth answer."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < FIRST_FEW:
            self.first.append(place)


@dataclass(slots=True)
class Tally:
    """What became of a file's answers.

    Attributes:
        num_rows: rows of the file.
        num_kept: answers that became trajectories, `num_unfinished` of them without a stop token.
        repaired, refused, doubted: by kind. An answer may be repaired in several ways, and be refused after that.
    """

    num_rows: int = 0
    num_kept: int = 0
    num_unfinished: int = 0
    repaired: dict[str, Cases] = field(default_factory=dict)
    refused: dict[str, Cases] = field(default_factory=dict)
    doubted: dict[str, Cases] = field(default_factory=dict)

    def repair(self, kind: str, place: str) -> None:
        """Count a repair."""
        self.repaired.setdefault(kind, Cases()).add(place)

    def refuse(self, kind: str, place: str) -> None:
        """Count a refusal; with --on-damage refuse the kind may be one of `REPAIRS` or `DOUBTS`."""
        self.refused.setdefault(kind, Cases()).add(place)

    def doubt(self, kind: str, place: str) -> None:
        """Count what was kept in doubt."""
        self.doubted.setdefault(kind, Cases()).add(place)

    def count_refused(self, kind: str) -> int:
        """How many were refused for this."""
        return self.refused[kind].count if kind in self.refused else 0

    def likely_misplaced(self, block_size: int) -> int:
        """How many of the kept answers probably stand at another row's prompt.

        Where the public engine loses an answer, those after it move up to the wrong prompts, and the last become "".
        Of maps at a wrong prompt at least one in B fits its block grid, since the prompts' remainders are equal: B - 1
        found mean one or more that were not.
        """
        if not self.count_refused("empty") or block_size < 2:
            return 0
        return round(sum(map(self.count_refused, OFF_THE_GRID)) / (block_size - 1))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.num_rows,
            "kept": self.num_kept,
            "kept_without_stop_token": self.num_unfinished,
            **{
                name: {kind: {"count": each.count, "first": each.first} for kind, each in sorted(cases.items())}
                for name, cases in self._groups()
            },
        }

    def lines(self) -> list[str]:
        """A table for people: what was done, how often, what it means, where first."""
        rows = [
            (group, str(each.count), f"{DESCRIBED[kind]} (row {', '.join(each.first)})")
            for group, cases in self._groups()
            for kind, each in sorted(cases.items(), key=lambda item: -item[1].count)
        ]
        widths = [max((len(row[place]) for row in rows), default=0) for place in (0, 1)]
        return [f"{group:{widths[0]}}  {count:>{widths[1]}}  {what}" for group, count, what in rows]

    def _groups(self) -> tuple[tuple[str, dict[str, Cases]], ...]:
        return (("repaired", self.repaired), ("refused", self.refused), ("doubtful", self.doubted))

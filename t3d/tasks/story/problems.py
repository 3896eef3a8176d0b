"""The word problems themselves: a person, a thing, a starting count and what happens to it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from t3d.tasks.story.draws import Draws

SPLITS = ("train", "validation", "test")

OPERATORS = {"gets": "+", "loses": "-", "doubles": "*", "triples": "*", "halves": "/"}
KINDS = tuple(OPERATORS)

SMALLEST, LARGEST = 2, 99  # every running count and amount: at least two (plural nouns), at most two digits
_LARGEST_AMOUNT = 20
_STARTS = (4, 40)
_EVENT_COUNTS = (2, 3, 4, 4)  # drawn from: longer stories are where few-step decoding breaks most


@dataclass(frozen=True, slots=True)
class Person:
    """Who the story is about, with the pronouns that must agree."""

    name: str
    he: str
    him: str
    his: str


def _people(names: str, he: str, him: str, his: str) -> tuple[Person, ...]:
    return tuple(Person(name, he, him, his) for name in names.split())


PEOPLE = _people("Mia Anna Nora Lily Ida Zoe Eva Rosa", "she", "her", "her") + _people(
    "Tom Ben Sam Leo Max Paul Dan Carl", "he", "him", "his"
)
THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "keys",
    "nuts",
    "pens",
    "pins",
    "rings",
    "shells",
    "stamps",
    "stones",
    "toys",
)


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the count; `amount` is what is added or taken, or the factor (2 for doubles and halves)."""

    kind: str
    amount: int

    def apply(self, count: int) -> int:
        """The count after this event."""
        match OPERATORS[self.kind]:
            case "+":
                return count + self.amount
            case "-":
                return count - self.amount
            case "*":
                return count * self.amount
            case _:
                return count // self.amount


@dataclass(frozen=True, slots=True)
class Problem:
    """One story; its answer follows from `start` and `events` alone."""

    person: Person
    thing: str
    start: int
    events: tuple[Event, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The running count: the start, then the count after each event."""
        counts = [self.start]
        for event in self.events:
            counts.append(event.apply(counts[-1]))
        return tuple(counts)

    @property
    def answer(self) -> int:
        """The count after the last event."""
        return self.counts[-1]


def split_of(problem: Problem) -> str:
    """The split a problem belongs to, by its numbers and events only: 80% train, 10% validation, 10% test.

    Neither names, things, wording nor seed matter, so no test problem is a training problem told otherwise.
    """
    signature = f"{problem.start}" + "".join(f" {event.kind} {event.amount}" for event in problem.events)
    tenth = int.from_bytes(sha256(signature.encode()).digest()[:8], "big") % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def draw_problem(draws: Draws) -> Problem:
    """A random problem whose every running count lies in [SMALLEST, LARGEST] and every halving is even."""
    person, thing = draws.pick(PEOPLE), draws.pick(THINGS)
    start = count = draws.between(*_STARTS)
    events = []
    for _ in range(draws.pick(_EVENT_COUNTS)):
        event = _draw_event(draws, count)
        count = event.apply(count)
        events.append(event)
    return Problem(person, thing, start, tuple(events))


def _draw_event(draws: Draws, count: int) -> Event:
    kind, low, high = draws.pick(_possible_events(count))
    return Event(kind, draws.between(low, high))


def _possible_events(count: int) -> list[tuple[str, int, int]]:
    """(kind, least amount, greatest amount) of what may happen to `count`; gets and loses count three times."""
    most_gained = min(_LARGEST_AMOUNT, LARGEST - count)
    most_lost = min(_LARGEST_AMOUNT, count - SMALLEST)
    possible = []
    if most_gained >= SMALLEST:
        possible += [("gets", SMALLEST, most_gained)] * 3
    if most_lost >= SMALLEST:
        possible += [("loses", SMALLEST, most_lost)] * 3
    if count * 2 <= LARGEST:
        possible.append(("doubles", 2, 2))
    if count * 3 <= LARGEST:
        possible.append(("triples", 3, 3))
    if count % 2 == 0 and count // 2 >= SMALLEST:
        possible.append(("halves", 2, 2))
    return possible

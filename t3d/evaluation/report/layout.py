"""A table as a record, and its three forms: terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

LEAST_NAME = 10
"""Letters of a name that a narrow terminal shows on a line."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry.

    Attributes:
        text: as it is shown.
        score: figure, rounded as it is shown, by which `mark_best` finds the best of a column; None does not compete.
        is_best: shown in bold.
    """

    text: str
    score: float | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column; `is_text` is aligned to the left, figures to the right."""

    name: str
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """Letters that a column takes on a terminal.

    Attributes:
        is_text: as in `Column`.
        whole: with nothing folded.
        heading_folded: with its heading folded between words.
        least: with figures folded between words too, or of names so much that they can be read.
    """

    is_text: bool
    whole: int
    heading_folded: int
    least: int


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table that a rich console prints, and that Markdown and CSV files hold.

    Attributes:
        name: of its CSV file.
        title: one line.
        columns: headings.
        groups: rows that belong together, in groups; a row has a cell a column.
        notes: what a reader must know, a sentence or two each.
        records: the same, tidy: a row a measurement, figures unrounded; they need not have all the same fields.
    """

    name: str
    title: str
    columns: Sequence[Column]
    groups: Sequence[Sequence[Sequence[Cell]]]
    notes: Sequence[str]
    records: Sequence[Mapping[str, Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """For `Console.print`."""
        table = Table(title=Text(self.title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column, width in zip(self.columns, self._widths(options.max_width), strict=True):
            justify: Literal["left", "right"] = "left" if column.is_text else "right"
            table.add_column(Text(column.name), justify=justify, overflow="fold", width=width)
        for group in self.groups:
            for row in group:
                table.add_row(*(Text(cell.text, style="bold" if cell.is_best else "") for cell in row))
            table.add_section()
        yield table
        yield from (Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in self.notes)
        yield ""

    def _widths(self, room: int) -> list[int | None]:
        """A width a column; None leaves it to rich, which may fold a figure in its middle.

        So it may where all lines fit as they are, and where there is no other way. Between the two, headings are folded
        first, then figures between words, while names take the rest.
        """
        rows = [[cell.text for cell in row] for group in self.groups for row in group]
        needs = [_need(column, own) for column, own in zip(self.columns, zip(*rows, strict=True), strict=True)]
        room -= 2 * len(needs) + 1  # what `SIMPLE_HEAD` and the padding take
        if sum(each.whole for each in needs) <= room or sum(each.least for each in needs) > room:
            return [None for _ in needs]
        if sum(each.heading_folded for each in needs) <= room:
            return [each.heading_folded for each in needs]
        return [None if each.is_text else each.least for each in needs]

    def markdown(self) -> str:
        """The table alone, without title and notes."""
        head = [column.name for column in self.columns]
        rule = ["---" if column.is_text else "---:" for column in self.columns]
        rows = [[_markdown_cell(cell) for cell in row] for group in self.groups for row in group]
        lines = [[_escape(name) for name in head], rule, *rows]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def section(self) -> str:
        """Title, table and notes in Markdown."""
        notes = "".join(f"\n- {_escape(note)}" for note in self.notes)
        return f"## {_escape(self.title)}\n\n{self.markdown()}{notes}\n"

    def csv(self) -> str:
        """The records, their fields in order of appearance; what is None or missing is empty."""
        text = io.StringIO()
        fields = list(dict.fromkeys(name for record in self.records for name in record))
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()


def mark_best(group: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The rows of a group with the highest score of each column marked; equal ones both, a lone one not."""
    columns = [_mark_best_of_column(column) for column in zip(*group, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _need(column: Column, texts: Sequence[str]) -> Need:
    """What a column needs for these entries."""
    words = max(len(word) for text in (column.name, *texts) for word in text.split())
    return Need(
        is_text=column.is_text,
        whole=max(map(len, (column.name, *texts))),
        heading_folded=max(map(len, (*column.name.split(), *texts))),
        least=min(words, LEAST_NAME) if column.is_text else words,
    )


def _mark_best_of_column(cells: Sequence[Cell]) -> list[Cell]:
    scores = [cell.score for cell in cells if cell.score is not None]
    if len(scores) < 2:
        return list(cells)
    return [replace(cell, is_best=cell.score == max(scores)) for cell in cells]


def _markdown_cell(cell: Cell) -> str:
    return f"**{_escape(cell.text)}**" if cell.is_best else _escape(cell.text)


def _escape(text: str) -> str:
    """Keep a name from ending its cell or its line, and from being read as markup."""
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())

"""The reference of commands, from the command line itself."""

from collections.abc import Iterator

import typer
from typer.cli import get_docs_for_click

from t3d.cli import app

PROGRAM = "t3d"


def command_pages() -> dict[str, str]:
    """Name of each command -> its page in Markdown, as `typer utils docs` writes it; a group has one."""
    with _context() as context:
        return {
            name: get_docs_for_click(obj=command, ctx=context, name=name, call_prefix=PROGRAM)
            for name, command in _commands(context)
        }


def command_table() -> str:
    """All commands, each with the first paragraph of its help and a link to its page."""
    with _context() as context:
        rows = [
            f"| [`{PROGRAM} {name}`]({name}.md) | {_first_paragraph(command.help or '')} |"
            for name, command in _commands(context)
        ]
    return "\n".join(["| command | does |", "|---|---|", *rows])


def _context() -> typer.Context:
    return typer.Context(typer.main.get_command(app), info_name=PROGRAM)


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _commands(context: typer.Context) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """By name."""
    group = context.command
    for name in sorted(group.list_commands(context)):
        yield name, group.get_command(context, name)

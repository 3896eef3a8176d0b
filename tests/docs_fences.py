"""What the documentation shows in fences and between backticks, and the commands in it."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from t3d.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [
    name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        *(str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("docs/**/*.md"))),
    )
    if (ROOT / name).exists()
]
FENCE = re.compile(
    r'^ *```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^ *```$', re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SETTING = re.compile(r"[A-Z_]+=.*")
"""A variable of the environment, before a command."""
ALL_COMMANDS = typer.main.get_command(app)
NEEDS_GPU = "needs a GPU"
"""Title of a fence that is not executed: for a GPU, released weights, the hub or a cluster."""


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page; `line` is where its text begins."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_text(page: str) -> str:
    return (ROOT / page).read_text()


def fences_of(page: str) -> list[Fence]:
    """In order; a fence whose first line is not understood is an error."""
    text = page_text(page)
    found = [
        Fence(page, text[: match.start("text")].count("\n") + 1, match["language"], match["title"] or "", match["text"])
        for match in FENCE.finditer(text)
    ]
    marks = re.findall(r"^ *```.*$", text, re.MULTILINE)
    assert len(marks) == 2 * len(found), f"{page}: a fence begins by something else than ```LANGUAGE title=..."
    return found


def inline_of(page: str) -> list[str]:
    """What stands between backticks, outside fences, with line ends as blanks."""
    return [" ".join(text.split()) for text in INLINE.findall(FENCE.sub("", page_text(page)))]


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell fence; one may go on over several lines."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending.removesuffix("\\")
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that is still open
            pending += "\n"
            continue
        pending = ""
        if words:
            yield words
    assert not pending, f"a command does not end: {pending}"


def without_settings(words: list[str]) -> list[str]:
    """A command without the variables before it, and without the & behind it."""
    while words and SETTING.fullmatch(words[0]):
        words = words[1:]
    return words[:-1] if words[-1:] == ["&"] else words


def arguments_of_t3d(words: list[str]) -> list[str] | None:
    """What t3d is given, whoever starts it; None if the command does not start it."""
    if "t3d.cli" in words:
        return words[words.index("t3d.cli") + 1 :]
    return words[1:] if words[:1] == ["t3d"] else None


def command_named(arguments: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command of the command line that arguments begin with, and the rest of them."""
    command, rest = ALL_COMMANDS, list(arguments)
    while isinstance(command, typer.core.TyperGroup) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"t3d has no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(arguments: list[str]) -> None:
    """Parse as the command line would; a wrong option, type or number of arguments raises."""
    command, rest = command_named(arguments)
    command.make_context("t3d", rest, resilient_parsing="--help" in rest)


def unknown_options(words: list[str]) -> list[str]:
    """The options of an inline command that do not exist; `...`, `[...]` and `a|b` may stand in it."""
    arguments = arguments_of_t3d(words)
    if arguments is not None:
        return sorted(_options_in(arguments) - {"--debug"} - _known(arguments)) if "lm-eval" not in arguments else []
    if words[0] == "python" and words[1:] and words[1].endswith(".py"):
        own = words[: words.index("--")] if "--" in words else words  # what follows is for another program
        return sorted(_options_in(own) - options_of_script(ROOT / words[1]))
    return []


def _options_in(words: list[str]) -> set[str]:
    return {word.strip("[](),").split("=")[0] for word in words if word.strip("[](").startswith("--")}


def _known(arguments: list[str]) -> set[str]:
    names = [word for word in arguments if re.fullmatch(r"[a-z][a-z-]*", word)]  # not RECIPE.yaml, ... or --options
    first = arguments[:1] and arguments[0] in names
    command, _ = command_named(names if first else [])
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}


def options_of_script(file: Path) -> set[str]:
    """The options that a script's argparse knows."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    return {name.value for call in added for name in call.args if isinstance(name, ast.Constant)} | {"--help"}

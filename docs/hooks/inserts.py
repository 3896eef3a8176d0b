"""What the site shows and nobody writes twice: the pages of commands, and lines `<!-- insert KIND: WHAT -->` of a page.

Kinds: `section FILE: HEADING` and `file: FILE` take text from the repository's root, `fields: MODULE.CLASS` the keys of
a config or record, `options: objectives` those of every objective, `commands: all` the list of commands.
"""

import re

from commands import command_pages, command_table
from fields import class_named, fields_of, options_of_objectives
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from sections import section_of, text_of

INSERT = re.compile(r"^<!-- insert (?P<kind>\w+)(?: (?P<file>[\w./-]+))?: (?P<what>.+?) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each command."""
    for name, text in command_pages().items():
        files.append(File.generated(config, f"commands/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what a page asks for; a line that cannot be answered stops the build."""
    return INSERT.sub(lambda found: inserted(page.file.src_uri, **found.groupdict()), markdown)


def inserted(page: str, kind: str, file: str | None, what: str) -> str:
    """The Markdown that stands for one line of the page `page`."""
    if kind == "section" and file is not None:
        return section_of(file, what, page)
    if kind == "file":
        return text_of(what, page)
    if kind == "fields":
        return fields_of(class_named(what))
    if (kind, what) == ("options", "objectives"):
        return options_of_objectives()
    if (kind, what) == ("commands", "all"):
        return command_table()
    raise ValueError(f"{page}: nothing inserts {kind}: {what}")

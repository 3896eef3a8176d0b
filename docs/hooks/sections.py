"""Text of the files at the repository's root, as a page of the site shows it."""

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
AT_HOME = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
"""File at the root -> the page that shows it."""


def section_of(file: str, heading: str, page: str) -> str:
    """What stands under the heading of second order `heading`, up to the next one.

    Raises:
        ValueError: there is no such heading.
    """
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise ValueError(f"{page}: {file} has no section {heading!r}")
    return linked_from(page, found[1])


def text_of(file: str, page: str) -> str:
    """A whole file."""
    return linked_from(page, (ROOT / file).read_text())


def linked_from(page: str, text: str) -> str:
    """The links of a file at the root as they lead from a page of docs/; what is not in the site is only named."""
    return LINK.sub(lambda found: _link(page, found), text)


def _link(page: str, found: re.Match[str]) -> str:
    target, _, anchor = found["target"].partition("#")
    if not target or "://" in target:
        return found[0]
    inside = AT_HOME.get(target, target.removeprefix("docs/"))
    if inside == target:
        return f"{found['text']} (`{target}`)"
    relative = PurePosixPath(os.path.relpath(inside, PurePosixPath(page).parent))
    return f"{found['image']}[{found['text']}]({relative}{'#' if anchor else ''}{anchor})"

"""The documentation's site: it builds without a warning, leads nowhere that is not there, and asks no other host."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
import yaml
from browser import chromium, file_url, watched  # noqa: F401  chromium is a fixture

from t3d.cli import app
from t3d.config import Recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COMMANDS = typer.main.get_command(app).commands
FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
"""What a browser asks for by itself, and the attribute that says where."""


class Page(HTMLParser):
    """What a built page refers to.

    Attributes:
        links: every href and src, with its element.
        anchors: every id.
        rows: the cells of each row of its tables.
        text: all of it.
    """

    def __init__(self, file):
        super().__init__()
        self.links, self.anchors, self.rows, self.text = [], set(), [], ""
        self._cell = False
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [(tag, attributes[name]) for name in ("href", "src", "data") if attributes.get(name)]
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Only read it."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    assert "WARNING" not in build.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Path inside the site -> page."""
    return {str(file.relative_to(site)): Page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}


def nav_files(entry):
    """The files of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [file for each in (entry.values() if isinstance(entry, dict) else entry) for file in nav_files(each)]


def navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    return nav_files(yaml.safe_load(text)["nav"])


def test_every_page_is_in_the_navigation_once(pages):
    written = {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")}
    made = {f"commands/{name}.md" for name in COMMANDS}
    assert sorted(navigation()) == sorted(written | made)
    assert {name.replace(".html", ".md") for name in pages} == written | made


def test_links_lead_somewhere(site, pages):
    for name, page in pages.items():
        for tag, link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = (site / name).parent / unquote(target.path) if target.path else site / name
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), f"{name}: <{tag}> leads to {link}"
            inside = str(file.resolve().relative_to(site.resolve()))
            if target.fragment and inside in pages:
                assert unquote(target.fragment) in pages[inside].anchors, f"{name}: {link} has no such place"


def test_no_other_host_is_asked(site, pages):
    for name, page in pages.items():
        for tag, link in page.links:
            if tag in FETCHED:
                asked = urlsplit(link)
                assert (asked.scheme in ("", "data"), asked.netloc) == (True, ""), f"{name}: <{tag}> {link}"
    for file in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", file.read_text()), file


def test_a_commands_page_has_all_its_options(pages):
    for name, command in COMMANDS.items():
        text = pages[f"commands/{name}.html"].text
        for each in (command, *getattr(command, "commands", {}).values()):
            for parameter in each.params:
                shown = parameter.metavar if parameter.param_type_name == "argument" else None
                assert (shown or parameter.opts[0]) in text, f"{name}: {parameter.opts}"
        assert f"t3d {name}" in pages["commands/index.html"].text


def test_every_key_says_what_it_is_for(pages):
    for name in ("recipe", "study", "trajectories"):
        tables = [row for row in pages[f"reference/{name}.html"].rows if len(row) == 4]
        assert tables
        for key, holds, default, meaning in tables:
            assert "" not in (holds.strip(), default.strip()), f"{name}: {key}"
            assert meaning.strip() or key == "key", f"{name}: {key} has no meaning in its docstring"
    keys = [row[0] for row in pages["reference/recipe.html"].rows if row]
    assert set(Recipe.model_fields) <= set(keys)
    assert {"rank", "ratio_power", "examples_per_step", "agree_with", "path_weight", "completed_by"} <= set(keys)


def test_the_python_reference_gives_shapes_and_errors(pages):
    text = pages["reference/api.html"].text
    for said in ("[N, B]", "float32 [M]", "Raises:", "Returns:", "from_pretrained", "steps_per_block"):
        assert said in text


def test_it_opens_and_searches_from_disk(site, chromium):  # noqa: F811
    with watched(chromium) as seen:
        seen.page.goto(file_url(site / "index.html"))
        seen.page.click("input.md-search__input")
        seen.page.keyboard.type("teacher_share")
        seen.page.wait_for_selector(".md-search-result__link[href*='reference/recipe.html']")
        assert seen.errors == []
        assert all(request.startswith(("file:", "data:")) for request in seen.requests)


@pytest.fixture(scope="module")
def sections():
    spec = importlib.util.spec_from_file_location("sections", DOCS / "hooks" / "sections.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_a_file_at_the_root_lead_on_from_a_page(sections):
    inside = "[a](docs/engine.md#step) ![b](docs/x.png) [c](CHANGELOG.md)"
    assert sections.linked_from("index.md", inside) == "[a](engine.md#step) ![b](x.png) [c](changes.md)"
    outside = "[d](requirements/README.md) [e](https://f.g/docs/) [h](#here)"
    assert sections.linked_from("index.md", outside) == "d (`requirements/README.md`) [e](https://f.g/docs/) [h](#here)"
    assert sections.linked_from("reference/api.md", "[a](docs/engine.md)") == "[a](../engine.md)"


def test_a_section_that_is_not_there_is_refused(sections):
    assert sections.section_of("README.md", "Commands", "index.md").strip().startswith("| command |")
    with pytest.raises(ValueError, match="no section 'Nowhere'"):
        sections.section_of("README.md", "Nowhere", "index.md")

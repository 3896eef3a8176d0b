"""CITATION.cff holds what the Citation File Format 1.2.0 asks for, and says what the package says of itself."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_required_fields_are_there():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")
    for field in ("message", "title"):
        assert CITATION[field].strip()
    assert CITATION["authors"]
    for person in CITATION["authors"]:
        assert person.get("name") or {"family-names", "given-names"} <= person.keys()


def test_it_cites_this_version():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_paper_is_cited_with_its_authors():
    (paper,) = CITATION["references"]
    assert paper["type"] == "article"
    assert {"title", "authors", "year"} <= paper.keys()
    assert "2602.12262" in paper["url"]
    assert all({"family-names", "given-names"} <= person.keys() for person in paper["authors"])
    assert [person["family-names"] for person in paper["authors"]][:3] == ["Zhang", "Zhang", "Han"]
    assert len(paper["authors"]) == 12


def test_changes_are_grouped():
    groups = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("### ")]
    assert groups == ["### Added", "### Changed", "### Fixed"]

"""What `make` installs: the lock files agree with pyproject.toml and with each other, and an audit says what it did."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from t3d.doctor.machine import EXTRAS as DOCTORS_EXTRAS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALLED = ("build.txt", "torch.txt", "dev.txt")
WRITTEN = (*INSTALLED, "tools.txt")
ENTRY = re.compile(
    r"^([a-z0-9-]+)==([^\s;]+)(?: ; (.+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
LATER_PYTHON = {"python_full_version": "3.13.0", "python_version": "3.13"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(*files):
    """Name -> requirements, of which the markers exclude each other."""
    found = {}
    for file in files:
        for name, version, marker, _ in ENTRY.findall((FOLDER / file).read_text()):
            found.setdefault(name, []).append(Requirement(f"{name}=={version}" + (f"; {marker}" if marker else "")))
    return found


def version_in(entries, **environment):
    """The version for a platform; None where there is none."""
    versions = [str(each.specifier)[2:] for each in entries if not each.marker or each.marker.evaluate(environment)]
    assert len(versions) <= 1
    return Version(versions[0]) if versions else None


def asked_for():
    """What pyproject.toml asks for, the backend of its build included; an extra may ask for other extras."""
    extras = [line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
    others = [line for line in extras if not line.startswith("t3d[")]
    return sorted({*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *others})


@pytest.mark.parametrize("line", asked_for())
@pytest.mark.parametrize("environment", [{}, LATER_PYTHON], ids=["this", "later"])
def test_what_the_project_asks_for_is_locked(line, environment):
    asked = Requirement(line)
    if asked.marker and not asked.marker.evaluate(environment):
        pytest.skip("not for this platform")
    assert version_in(locked(*INSTALLED)[canonicalize_name(asked.name)], **environment) in asked.specifier


@pytest.mark.parametrize("file", [*WRITTEN, "torch-cpu.txt"])
def test_every_line_has_a_version_and_hashes(file):
    text = "".join(line for line in (FOLDER / file).read_text().splitlines(keepends=True) if line.strip()[:1] != "#")
    if file == "torch-cpu.txt":
        text = text.replace("+cpu", "")
    left = ENTRY.sub("", text)
    assert left.strip() == ""
    assert ENTRY.search(text)


def test_no_package_is_in_two_files_of_an_install():
    names = [name for file in INSTALLED for name in locked(file)]
    assert len(names) == len(set(names))


def test_whatever_a_locked_package_needs_is_locked():
    """By the metadata of the packages that are installed here; this platform's."""
    everything, missing = locked(*INSTALLED), []
    for name in everything:
        for line in installed_requirements(name):
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            entries = everything.get(canonicalize_name(needed.name), [])
            version = version_in(entries) if entries else None
            if version is None or version not in needed.specifier:
                missing.append(f"{name} needs {line}, and locked is {version}")
    assert missing == []


def installed_requirements(name):
    try:
        return requires(name) or []
    except PackageNotFoundError:  # of another platform
        return []


def test_both_builds_of_torch_are_of_one_version():
    (pypi,) = locked("torch.txt")["torch"]
    named = re.search(r"^torch==(\S+)\+cpu ", (FOLDER / "torch-cpu.txt").read_text(), re.MULTILINE)
    assert str(pypi.specifier) == f"=={named[1]}"


def test_tools_are_locked():
    for line in (FOLDER / "tools.in").read_text().splitlines():
        if not line.startswith("#"):
            asked = Requirement(line)
            assert version_in(locked("tools.txt")[asked.name]) in asked.specifier


def test_make_installs_nothing_that_is_not_locked():
    makefile = (ROOT / "Makefile").read_text()
    (how,) = re.findall(r"^LOCKED := (.*)$", makefile, re.MULTILINE)
    assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(how.split())
    installs = re.findall(r"pip (?:\$\(LOCKED\)|install .*)[^|\n]*", makefile)
    assert len(installs) == 6
    for each in installs:
        assert "$(LOCKED) -r " in each or "--no-deps --no-build-isolation -e ." in each


# --- extras ---

EXTRAS = PROJECT["project"]["optional-dependencies"]
READ_BY_PEOPLE = [
    *(ROOT / "t3d").rglob("*.py"),
    *(file for folder in ("docs", "recipes", "launch", "bench") for file in (ROOT / folder).rglob("*.*")),
    *ROOT.glob("*.md"),
]


def test_extras_are_the_promised_ones():
    assert set(EXTRAS) == {"gpu", "serve", "eval", "ray", "gguf", "docs", "dev"}


def test_every_extra_that_a_message_or_a_page_names_exists():
    named = {}
    for file in READ_BY_PEOPLE:
        if file.suffix in (".py", ".md", ".yaml", ".sh", ".sbatch"):
            for names in re.findall(r"(?:t3d|\.)\[([a-z][a-z, -]*)\]'", file.read_text()):
                named.update({name.strip(): file for name in names.split(",")})
    assert {"gpu", "serve", "eval", "ray", "gguf"} <= set(named)
    assert {name: file for name, file in named.items() if name not in EXTRAS} == {}


def test_an_extra_of_everything_names_the_others():
    (line,) = (line for line in EXTRAS["dev"] if line.startswith("t3d["))
    assert Requirement(line).extras == set(EXTRAS) - {"dev"}


def test_the_doctor_looks_for_what_the_extras_bring():
    for extra, modules in DOCTORS_EXTRAS.items():
        brought = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        assert {canonicalize_name(name) for name in modules} <= brought


PART_OF = {"pydantic_core": "pydantic"}
"""Module -> the distribution that pins its version."""


def test_whatever_is_imported_is_asked_for():
    """By the names that distributions are installed with; of this platform."""
    asked = {canonicalize_name(Requirement(line).name) for line in asked_for()}
    owners = packages_distributions()
    known = sys.stdlib_module_names | {"t3d", "_typeshed"}  # the last one is for type checkers, in no distribution
    missing = {}
    for file in (ROOT / "t3d").rglob("*.py"):
        for module in imported_modules(file) - known:
            name = PART_OF.get(module, module)
            if not {canonicalize_name(each) for each in (name, *owners.get(module, ()))} & asked:
                missing[module] = file
    assert missing == {}


def imported_modules(file):
    """The first part of the name of each module that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in found}


# --- the scripts ---


@pytest.mark.parametrize("name, file", [
    ("torch", "torch.txt"), ("nvidia-nccl-cu13", "torch.txt"), ("cuda-toolkit", "torch.txt"),
    ("setuptools", "build.txt"), ("torchao", "dev.txt"), ("triton", "dev.txt"),
])  # fmt: skip
def test_the_file_of_a_package(name, file):
    assert script("lock").file_of(f"{name}==1.0 \\\n    --hash=sha256:0\n") == file


def test_entries_of_a_resolvers_output():
    entries = [
        "a==1 \\\n    --hash=sha256:0\n    # via t3d\n",
        "b-c==2 ; x == 'y' \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n",
    ]
    assert script("lock").ENTRY.findall("".join(entries)) == entries


def answer(name, *ids, fixed=()):
    return {
        "name": name,
        "version": "1",
        "vulns": [{"id": ids[0], "aliases": ids[1:], "fix_versions": fixed}] if ids else [],
    }


SKIPPED = {"name": "s", "skip_reason": "not found"}


@pytest.mark.parametrize("answers, ignored, exit_code, counts", [
    ([answer("a"), answer("b")], {}, 0, (2, 0, 0, 0, 0)),
    ([], {}, 3, (0, 0, 0, 0, 0)),
    ([answer("a"), SKIPPED], {}, 3, (1, 1, 0, 0, 0)),
    ([answer("a", "X-1", "CVE-1")], {}, 1, (1, 0, 1, 0, 0)),
    ([answer("a", "X-1", "CVE-1")], {"CVE-1": "not used"}, 0, (1, 0, 0, 1, 0)),
    ([answer("a", "X-1"), SKIPPED], {}, 1, (1, 1, 1, 0, 0)),
    ([answer("a")], {"CVE-1": "not used"}, 1, (1, 0, 0, 0, 1)),
    ([answer("a", "X-1"), answer("a", "X-1")], {"X-1": "why"}, 0, (2, 0, 0, 1, 0)),
])  # fmt: skip
def test_what_an_audit_comes_to(answers, ignored, exit_code, counts):
    found = script("audit").judge(answers, ignored)
    assert found.exit_code == exit_code
    lines = (found.unknown, found.vulnerable, found.explained, found.stale)
    assert (found.num_audited, *map(len, lines)) == counts


def test_every_ignored_vulnerability_has_a_reason():
    for each in tomllib.loads((FOLDER / "audit-ignored.toml").read_text())["ignored"]:
        assert each.keys() == {"id", "reason"}
        assert len(each["reason"]) > 20

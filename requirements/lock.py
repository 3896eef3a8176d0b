"""Write the lock files that `make` installs from, as pyproject.toml and tools.in ask, with hashes of all files.

    make lock                                          # what is locked stays; what is new comes in
    .venv-tools/bin/python requirements/lock.py -P ray # newer versions of the named packages
    .venv-tools/bin/python requirements/lock.py --all  # newer versions of all

Versions and hashes are PyPI's, for every platform and for Python 3.11 and later, by uv's resolver. The lock is split so
that each step of an install can do without build isolation and without dependencies that no file here names:

    build.txt      the build backend, which the rest is built with
    torch.txt      PyTorch as PyPI has it, with the CUDA libraries that only it asks for
    dev.txt        all other packages of `.[dev]`
    tools.txt      this script's resolver, and pip-audit
    torch-cpu.txt  kept by hand
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PYPROJECT = FOLDER.parent / "pyproject.toml"
INDEX = "https://pypi.org/simple"
"""Its hashes are locked, wherever pip gets the files from."""
UV = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--default-index", INDEX)
BUILD = ("setuptools",)
TORCH = re.compile(r"torch$|nvidia-|cuda-")
"""Packages of torch.txt."""
HEADER = "# Written by requirements/lock.py (make lock); do not edit.\n"
ENTRY = re.compile(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", re.MULTILINE | re.DOTALL)
"""A package in uv's output: its line, its hashes, and who asks for it."""


def main() -> None:
    """Resolve and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-P", "--package", action="append", default=[], help="to take a newer version of")
    parser.add_argument("--all", action="store_true", help="newer versions of all packages")
    arguments = parser.parse_args()
    newer = ["--upgrade"] if arguments.all else [each for name in arguments.package for each in ("-P", name)]
    backend = tomllib.loads(PYPROJECT.read_text())["build-system"]["requires"]
    files = ("build.txt", "torch.txt", "dev.txt")
    resolved = resolve((str(PYPROJECT), "-", "--extra", "dev"), "\n".join(backend), files, newer)
    for name in files:
        write(name, [entry for entry in resolved if file_of(entry) == name])
    write("tools.txt", resolve(("-",), (FOLDER / "tools.in").read_text(), ("tools.txt",), newer))


def resolve(inputs: tuple[str, ...], stdin: str, locked: tuple[str, ...], newer: list[str]) -> list[str]:
    """One entry for each package that the inputs come to.

    Args:
        inputs: of uv; "-" is `stdin`.
        stdin: requirements, one a line.
        locked: files whose versions are kept where they can be.
        newer: uv's options for those that are not to be kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "locked.txt"
        out.write_text("".join((FOLDER / name).read_text() for name in locked if (FOLDER / name).exists()))
        command = [Path(sys.executable).with_name("uv"), "pip", "compile", *inputs, *UV, *newer, "-q", "-o", out]
        subprocess.run(command, input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)
        return ENTRY.findall(out.read_text())


def file_of(entry: str) -> str:
    """The file that an entry belongs in."""
    name = entry.partition("==")[0]
    if name in BUILD:
        return "build.txt"
    return "torch.txt" if TORCH.match(name) else "dev.txt"


def write(name: str, entries: list[str]) -> None:
    """A lock file."""
    (FOLDER / name).write_text(HEADER + "".join(entries))


if __name__ == "__main__":
    main()

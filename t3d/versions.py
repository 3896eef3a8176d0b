"""Versions of what a result depends on."""

import platform
from importlib.metadata import version

import t3d


def versions() -> dict[str, str]:
    """Package -> version, Python included."""
    found = {name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")}
    return {"t3d": t3d.__version__, "python": platform.python_version(), **found}

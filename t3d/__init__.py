"""T3D: few-step decoding of block-diffusion language models by trajectory self-distillation."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from t3d.types import Decoding, Generation, Trajectory

if TYPE_CHECKING:
    from t3d.engine import Engine

try:
    __version__ = version("t3d")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Decoding", "Engine", "Generation", "Trajectory", "__version__"]


def __getattr__(name: str) -> Any:
    """`t3d.Engine` on first use: importing torch takes seconds, and `t3d --help` does not need it."""
    if name == "Engine":
        from t3d.engine import Engine

        return Engine
    raise AttributeError(f"module 't3d' has no attribute {name!r}")

"""T3D: few-step decoding of block-diffusion language models by trajectory self-distillation."""

from typing import TYPE_CHECKING, Any

from t3d.types import Decoding, Generation, Trajectory

if TYPE_CHECKING:
    from t3d.engine import Engine

    __version__: str

__all__ = ["Decoding", "Engine", "Generation", "Trajectory", "__version__"]


def __getattr__(name: str) -> Any:
    """On first use, as `t3d --help` needs neither: torch takes seconds to import, and the version is looked up."""
    if name == "Engine":
        from t3d.engine import Engine

        return Engine
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("t3d")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    raise AttributeError(f"module 't3d' has no attribute {name!r}")

"""Block-diffusion decoding: tokens in, tokens out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t3d.engine.engine import Engine
    from t3d.engine.streaming import AsyncEngine

__all__ = ["AsyncEngine", "Engine"]


def __getattr__(name: str) -> Any:
    """An engine, on first use: it imports the models, which takes seconds, and checking a rule's name does not."""
    if name == "Engine":
        from t3d.engine.engine import Engine

        return Engine
    if name == "AsyncEngine":
        from t3d.engine.streaming import AsyncEngine

        return AsyncEngine
    raise AttributeError(f"module 't3d.engine' has no attribute {name!r}")

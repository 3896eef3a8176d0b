"""Block-diffusion decoding: tokens in, tokens out."""

from t3d.engine.engine import Engine
from t3d.engine.streaming import AsyncEngine

__all__ = ["AsyncEngine", "Engine"]

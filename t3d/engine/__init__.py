"""Block-diffusion decoding: tokens in, tokens out."""

from t3d.engine.engine import Engine

__all__ = ["Engine"]

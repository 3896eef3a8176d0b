"""The plain engine: what decoding means, in as few lines as it takes. The fast one is tested against it."""

from t3d.engine.plain.engine import PlainEngine

__all__ = ["PlainEngine"]

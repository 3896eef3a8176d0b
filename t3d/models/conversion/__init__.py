"""From an autoregressive model to a block-diffusion model of the same weights."""

from t3d.models.conversion.from_ar import Conversion, convert_from_ar

__all__ = ["Conversion", "convert_from_ar"]

"""A model's folder written again: in another dtype, and in the form that servers read."""

from __future__ import annotations

from pathlib import Path

from t3d.errors import RequestError
from t3d.models.loading import has_tokenizer, load_model, load_tokenizer
from t3d.models.saving import save_model


def export_model(source: str | Path, out: Path, dtype: str) -> int:
    """Write a copy of a model with tokenizer and checksums; it is made in the host's memory.

    Args:
        source: folder, hub id or built-in name.
        out: empty or new folder.
        dtype: of the weights written: float32, bfloat16 or float16.

    Returns:
        how many weights it has.

    Raises:
        RequestError: no such model or dtype, or weights that the dtype does not reach.
        WorkError: the disk refuses.
    """
    model = load_model(source, dtype=dtype, device="cpu")
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise RequestError(f"model {source}: some of its weights are not finite in {dtype}; take another --dtype")
    tokenizer = load_tokenizer(source) if has_tokenizer(source) else None
    save_model(model, out, tokenizer, with_checksums=True)
    return int(model.num_parameters())

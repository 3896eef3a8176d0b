"""Writing a model's folder, and whether one is as it was written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from t3d.checksums import CHECKSUMS_FILE, checked, damage_of_folder
from t3d.errors import RequestError, WorkError
from t3d.models.family import BlockDiffusionModel
from t3d.models.servers import in_server_form


def save_model(
    model: BlockDiffusionModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    with_checksums: bool = False,
) -> None:
    """Write config, weights and tokenizer so that `load_model` and the servers that know SDAR read them.

    Args:
        model: config and weights to write, in the dtype that it has.
        folder: where to; made if need be.
        tokenizer: to write beside it; None writes none.
        with_checksums: let `load_model` and `load_tokenizer` refuse a folder that is not as it is written now.

    Raises:
        WorkError: the disk refuses.
    """
    try:
        with checked(Path(folder)) if with_checksums else nullcontext():
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            in_server_form(Path(folder))
    except (OSError, SafetensorError) as error:
        raise WorkError(f"model {folder}: cannot be written: {' '.join(str(error).split())[:200]}") from error


def require_intact(folder: str | Path, name: str | Path, is_read: Callable[[str], bool]) -> None:
    """Refuse a model whose files are not those that were written with checksums, as far as they are read.

    Args:
        folder: of the model; one that is not on this machine is not looked at.
        name: how the model was asked for.
        is_read: whether the file of this name is.

    Raises:
        RequestError: one is damaged or missing, or the model was not written to its end.
    """
    if damage := damage_of_folder(Path(folder), is_read):
        raise RequestError(
            f"model {name}: {damage}; write or copy it again, or delete its {CHECKSUMS_FILE} if you changed it yourself"
        )


def is_weights(file: str) -> bool:
    """Whether a model's file of this name holds weights."""
    return file.endswith(".safetensors")

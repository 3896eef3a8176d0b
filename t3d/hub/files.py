"""Which files of a model's folder go to the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from t3d.checksums import CHECKSUMS_FILE, damage_of_folder, unsealed
from t3d.errors import RequestError
from t3d.models import BlockDiffusionConfig, load_config
from t3d.models.plausible import check_weights_suffice, room_for_weights
from t3d.models.servers import CONFIG_CODE_FILE

CARD_FILE = "README.md"
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_BESIDE = (
    "config.json",
    CONFIG_CODE_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
)
"""What goes up beside the weights; whatever else lies in a folder (optimizer states, logs) stays."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a whole model.

    Attributes:
        folder: where they lie.
        config: of the model.
        upload: names of what goes up, the card aside.
        left: names of what stays, the card aside.
    """

    folder: Path
    config: BlockDiffusionConfig
    upload: tuple[str, ...]
    left: tuple[str, ...]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.folder / name).stat().st_size


def read_model_files(folder: Path) -> ModelFiles:
    """The files of a model's folder.

    Raises:
        RequestError: it holds no model, not all of one, or one that is not as it was written.
    """
    if not folder.is_dir():
        raise RequestError(f"model {folder}: is no folder; name one with a model in it, such as a run's model")
    config = load_config(folder)
    if damage := damage_of_folder(folder, CARD_FILE.__ne__):
        raise RequestError(f"model {folder}: {damage}; nothing is uploaded; write or copy it again")
    weights = list(_weights_of(folder))
    check_weights_suffice(config, folder, room_for_weights(folder))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise RequestError(f"model {folder}: holds no tokenizer; a model is of use to others with one only")
    upload = [name for name in (*_BESIDE, *weights) if (folder / name).is_file()]
    if _checksums_hold(folder, upload):
        upload.append(CHECKSUMS_FILE)
    there = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
    left = [name for name in there if name not in (*upload, CARD_FILE)]
    return ModelFiles(folder, config, tuple(upload), tuple(left))


def _weights_of(folder: Path) -> Iterator[str]:
    """Names of the files with weights, and of their index; each can be opened, so none was cut off.

    Raises:
        RequestError: one is missing or broken.
    """
    names = [_WEIGHTS]
    index = folder / _WEIGHTS_INDEX
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise RequestError(f"model {folder}: {index.name} cannot be read; write or copy the model again") from error
        yield index.name
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise RequestError(f"model {folder}: {name} is missing; the model is not whole")
        try:
            with safe_open(folder / name, "pt") as file:
                file.keys()
        except (OSError, SafetensorError) as error:
            raise RequestError(f"model {folder}: {name} cannot be read; write or copy the model again") from error
        yield name


def _checksums_hold(folder: Path, upload: list[str]) -> bool:
    """Whether the folder has checksums, and all that they name goes up: else they would call the copy damaged."""
    file = folder / CHECKSUMS_FILE
    return file.is_file() and set(unsealed(file.read_bytes())["sha256"]) <= set(upload)

"""Saved folders as LMDeploy and SGLang read them; docs/servers.md names the line of theirs behind each rule.

transformers 5 writes some fields in forms that it alone reads, and both servers also run on transformers 4. What is
written here is the form of the released SDAR models, which both releases, the servers and `load_model` read alike.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t3d.files import write_whole

SERVED_MASK_ID = 151669
"""The mask id that both servers have built in for SDAR, whatever config.json says."""
CONFIG_CODE_FILE = "configuration_sdar.py"
"""The one file of code in a saved folder."""
_CONFIG_CODE = Path(__file__).with_name(CONFIG_CODE_FILE)
_CONFIG_CLASSES = {"sdar": "SDARConfig", "sdar_moe": "SDARMoeConfig"}
"""`model_type` -> class in `_CONFIG_CODE`: the families that the servers know."""


def in_server_form(folder: Path) -> None:
    """Rewrite the small files of a folder that transformers has just saved, in place.

    Raises:
        OSError: the disk refuses.
    """
    fields = _rewrite(folder / "config.json", _served_config)
    if fields.get("model_type") in _CONFIG_CLASSES:
        shutil.copyfile(_CONFIG_CODE, folder / CONFIG_CODE_FILE)
    if (folder / "tokenizer_config.json").exists():
        _rewrite(folder / "tokenizer_config.json", _served_tokenizer)


def is_served(model_type: str, mask_token_id: int | None) -> bool:
    """Whether LMDeploy and SGLang can decode a model with these two in its config: they know no others."""
    return model_type in _CONFIG_CLASSES and mask_token_id == SERVED_MASK_ID


def _served_config(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json with the class of its config, and with the names of transformers 4 for dtype and rotary embedding."""
    config_class = _CONFIG_CLASSES.get(fields["model_type"])
    if config_class is None:
        return fields
    rope = fields.pop("rope_parameters", None) or {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        **fields,
        "auto_map": {"AutoConfig": f"{_CONFIG_CODE.stem}.{config_class}"},
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling or None,
        "rope_theta": rope.get("rope_theta", fields.get("rope_theta")),
        "torch_dtype": fields.get("dtype"),
    }


def _served_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in the names of transformers 4, and without code that is not in the folder."""
    fields.pop("auto_map", None)
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    return fields


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    fields = change(json.loads(file.read_text(encoding="utf-8")))
    write_whole(file, json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return fields

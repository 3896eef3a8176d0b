"""Load and save models and tokenizers; every failure is one line that says what to do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from t3d.errors import RequestError, WorkError, message_of
from t3d.models.families import FAMILIES
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel
from t3d.models.plausible import check_generation_config, check_numbers, check_weights_suffice, room_for_weights
from t3d.models.saving import is_weights, require_intact
from t3d.models.sharding import check_shares, share_options, whole

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILT_IN = ("story-mini", "story-small", "story-mini-student", "story-small-student")
"""Models that ship with the package, two teachers and a student of each; they load by name."""
BUILT_IN_TOKENIZER = "story-tokenizer"
"""The built-in task's tokenizer, for training a model on it from random weights."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE_TYPES = ("cpu", "cuda")
ATTENTIONS = ("sdpa", "eager")
FINGERPRINT_SAMPLES = 1024
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies do not depend on the length of the sequence, so that a cached key stays right."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name; anything else is a folder that is not there

transformers_logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not the user's concern


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_device(device: str | torch.device | None) -> torch.device:
    """A usable device.

    Raises:
        RequestError: neither the CPU nor a CUDA device, or one that is not here.
    """
    if device is None:
        return default_device()
    try:
        chosen: torch.device | None = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in DEVICE_TYPES:
        raise RequestError(f"device {device!r} is unknown: use cpu, cuda or cuda:0")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {device!r} is not on this machine ({torch.cuda.device_count()} CUDA devices)")
    return chosen


def device_name(device: torch.device, count: int = 1) -> str:
    """How results call a device: a GPU as its maker does, else "cpu (x86_64)"; several of them "2 x ..."."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{device.type} ({platform.machine()})"
    return name if count == 1 else f"{count} x {name}"


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """A dtype from its name; None means float32 on the CPU and the stored dtype elsewhere (also None)."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def resolve_model(name: str | Path) -> str:
    """The folder of a built-in model or tokenizer for its name; anything else (a folder, a hub id) as it is."""
    if str(name) in (*BUILT_IN, BUILT_IN_TOKENIZER):
        return str(ASSETS / str(name))
    return str(name)


def load_config(name: str | Path, revision: str | None = None) -> BlockDiffusionConfig:
    """The config of a model folder or hub id; code that the config names is never run.

    Raises:
        RequestError: nothing there, hub unreachable, unknown family, no mask id, or fields out of place.
    """
    source = resolve_model(name)
    folder = Path(source)
    if not (os.path.exists(folder / "config.json") if os.path.isdir(folder) else _HUB_ID.fullmatch(source)):
        raise RequestError(_not_found(name, FileNotFoundError(source)))  # transformers would make up an empty config
    require_intact(folder, name, "config.json".__eq__)
    try:
        fields, _ = BlockDiffusionConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError, TypeError, RecursionError) as error:  # TypeError: JSON, but no mapping
        raise RequestError(_not_found(name, error)) from error
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise RequestError(
            f"model {name}: model_type {model_type!r} is not supported (known: {', '.join(sorted(FAMILIES))}; "
            "an autoregressive model becomes one of these by t3d convert --from-ar)"
        )
    config_class, _ = FAMILIES[model_type]
    try:
        config = config_class.from_dict(fields)
    except Exception as error:  # transformers validates fields with several exception types
        raise RequestError(f"model {name}: config.json is not valid: {message_of(error)}") from error
    _check_config(config, name, revision)
    return config


def load_model(
    name: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str = "sdpa",
    revision: str | None = None,
    mesh: DeviceMesh | None = None,
) -> BlockDiffusionModel:
    """A block-diffusion model from a folder, the hub, or the package ("story-mini").

    Args:
        name: folder, hub id or built-in name.
        dtype: "float32", "bfloat16", "float16"; None is float32 on the CPU, the stored dtype on CUDA.
        device: None takes CUDA where there is one.
        attention: transformers' attention function, "sdpa" or "eager".
        revision: of a hub id.
        mesh: of processes that load it together, each its part onto its own device; before it is used, all of them call
            `t3d.models.sharding.hold_own_part`.

    Returns:
        the model in eval mode.

    Raises:
        RequestError: as `load_config`; weights missing, of other shapes or unreadable; one that cannot be shared so.
        WorkError: the device has no room for it.
    """
    if attention not in ATTENTIONS:
        raise RequestError(f"attention {attention!r} is unknown: use one of {', '.join(ATTENTIONS)}")
    target = as_device(device)
    chosen_dtype = as_dtype(dtype, target)
    config = load_config(name, revision)
    require_intact(resolve_model(name), name, is_weights)
    folder = Path(resolve_model(name))
    check_generation_config(folder, name)
    check_weights_suffice(config, name, room_for_weights(folder))
    _, model_class = FAMILIES[config.model_type]
    shares = {}
    if mesh is not None:
        check_shares(config, mesh.size(), name)
        shares = share_options(config, model_class, mesh)
    try:
        model, info = model_class.from_pretrained(
            resolve_model(name),
            config=config,
            dtype=chosen_dtype or "auto",
            attn_implementation=attention,
            revision=revision,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they come back in `info`, and are refused below in one line
            **shares,
        )
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(name) from error
    except Exception as error:  # safetensors, OSError, RuntimeError: whatever made the weights unreadable
        raise RequestError(f"model {name}: its weights cannot be read: {message_of(error)}") from error
    check_weights(name, info)
    try:
        return (model.to(target) if mesh is None else model).eval()
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(name) from error


def _does_not_fit(name: str | Path) -> WorkError:
    return WorkError(
        f"model {name} does not fit the device: take a smaller --dtype, or several GPUs for it (t3d rollout and "
        "t3d eval --tensor-parallel)"
    )


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        RequestError: there is none, or it cannot be read.
    """
    require_intact(resolve_model(name), name, lambda file: not is_weights(file))
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name), revision=revision, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode("a", add_special_tokens=False))  # shows now whether its parts go together
        return tokenizer
    except Exception as error:  # a missing or broken tokenizer surfaces as many types
        raise RequestError(f"model {name}: no tokenizer can be read there: {message_of(error)}") from error


def has_tokenizer(name: str | Path) -> bool:
    """False for a model folder without any tokenizer file; a hub id is taken to have one."""
    folder = Path(resolve_model(name))
    return not os.path.isdir(folder) or any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that two tokenizers share exactly if they map the same tokens to the same ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def model_fingerprint(model: BlockDiffusionModel) -> str:
    """16 hex digits of a model's names, shapes and a sample of every weight: any training step changes it."""
    if model.sharding is not None:
        return model.sharding.fingerprint
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(_sample(tensor).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> Tensor:
    flat = whole(tensor).reshape(-1)
    stride = max(1, flat.numel() // FINGERPRINT_SAMPLES)
    return flat[::stride].float().cpu()


def _check_config(config: BlockDiffusionConfig, name: str | Path, revision: str | None) -> None:
    check_numbers(config, name)
    if config.mask_token_id is None:
        config.mask_token_id = _mask_id_of_tokenizer(name, revision)
    if not isinstance(config.mask_token_id, int) or not 0 <= config.mask_token_id < config.vocab_size:
        raise RequestError(
            f"model {name}: mask_token_id {config.mask_token_id!r} is not in the vocabulary of {config.vocab_size}"
        )
    check_layers(config, name)


def check_layers(config: BlockDiffusionConfig, name: str | Path) -> None:
    """Refuse layers that blocks cannot be decoded with.

    Raises:
        RequestError: sliding windows, or a rotary embedding that changes with the length.
    """
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise RequestError(f"model {name}: sliding-window layers cannot decode blocks; use full attention")
    rotary_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rotary_type not in ROTARY_TYPES:
        raise RequestError(
            f"model {name}: rotary embedding of type {rotary_type!r} is not supported: use {', '.join(ROTARY_TYPES)}"
        )


def _mask_id_of_tokenizer(name: str | Path, revision: str | None) -> int:
    try:
        mask_id = load_tokenizer(name, revision).mask_token_id
    except RequestError:
        mask_id = None
    if mask_id is None:
        raise RequestError(
            f"model {name}: no mask id; set mask_token_id in config.json (151669 for the released SDAR models)"
        )
    return mask_id


def check_weights(name: str | Path, info: dict) -> None:
    """Refuse what transformers would replace by random weights; `info` is its `output_loading_info`."""
    for kind, what in (
        ("mismatched_keys", "of another shape than config.json says"),
        ("missing_keys", "missing"),
    ):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(kind, ()))
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise RequestError(f"model {name}: weights {what}: {keys[0]}{more}; download or save the model again")


def _not_found(name: str | Path, error: Exception) -> str:
    path = Path(resolve_model(name))
    if os.path.exists(path / "recipe.json") and os.path.isdir(path / "model"):
        return f"model {name}: is the folder of a training run; its model is {path / 'model'}"
    if os.path.isdir(path) and not os.path.exists(path / "config.json"):
        return f"model {name}: the folder holds no config.json"
    if os.path.isdir(path):
        return f"model {name}: config.json cannot be read: {message_of(error)}"
    return (
        f"model {name}: not a folder, not one of {', '.join(BUILT_IN)}, and the hub did not give it "
        "(check the spelling and the network, or download it first)"
    )

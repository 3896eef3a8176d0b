"""An autoregressive model as a block-diffusion model of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig

from t3d.errors import RequestError
from t3d.models.conversion.mask_token import add_mask_token, grow_vocabulary
from t3d.models.conversion.reading import read_checkpoint, read_gguf
from t3d.models.loading import DTYPES
from t3d.models.saving import save_model
from t3d.models.stopping import stop_token_ids


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        source_type, family: `model_type` before and after.
        num_parameters: of the block-diffusion model.
        mask_token, mask_token_id: what hides a token.
        old_rows, new_rows: of the vocabulary, before and after.
        stop_token_ids: what ends an answer.
    """

    source_type: str
    family: str
    num_parameters: int
    mask_token: str
    mask_token_id: int
    old_rows: int
    new_rows: int
    stop_token_ids: tuple[int, ...]


def convert_from_ar(
    source: str,
    out: Path,
    *,
    block_size: int = 4,
    gguf_file: str | None = None,
    dtype: str = "bfloat16",
    mask_token: str | None = None,
) -> Conversion:
    """Write the block-diffusion folder of an autoregressive model.

    The layers stay as they are. That the model sees its own block in both directions, and predicts each token at its
    own position instead of one earlier, is what it is trained for next.

    Args:
        source: folder, hub id, or GGUF file.
        out: empty or new folder.
        block_size: B of the new model.
        gguf_file: name of a GGUF file inside of `source`.
        dtype: of the weights written: float32, bfloat16 or float16.
        mask_token: text of the mask token; None is the tokenizer's own, else "<|mask|>".

    Raises:
        RequestError: no such model or tokenizer, or a model that cannot become a block-diffusion model.
        WorkError: the disk refuses.
    """
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    if gguf_file is not None or source.endswith(".gguf"):
        read = read_gguf(source, gguf_file, DTYPES[dtype])
    else:
        read = read_checkpoint(source, DTYPES[dtype])
    model, tokenizer = read.model, read.tokenizer
    stops, old_rows = stop_token_ids(model, tokenizer), model.config.vocab_size
    if tokenizer.eos_token_id is None:
        raise RequestError(f"model {source}: its tokenizer names no token that ends an answer (eos_token)")
    mask = add_mask_token(tokenizer, old_rows, mask_token, taken=stops)
    grow_vocabulary(model, mask)
    model.config.block_size = block_size
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=list(stops), pad_token_id=model.config.pad_token_id
    )
    save_model(model, out, tokenizer, with_checksums=True)
    return Conversion(
        source_type=read.model_type,
        family=model.config.model_type,
        num_parameters=model.num_parameters(),
        mask_token=mask.token,
        mask_token_id=mask.token_id,
        old_rows=old_rows,
        new_rows=mask.num_rows,
        stop_token_ids=stops,
    )

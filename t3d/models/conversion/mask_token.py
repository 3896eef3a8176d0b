"""The mask token: a place in the vocabulary, and a row to start training from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from t3d.errors import RequestError
from t3d.models.family import BlockDiffusionModel

DEFAULT_MASK_TOKEN = "<|mask|>"
ROW_MULTIPLE = 128
"""A vocabulary that must grow, grows to a multiple of this many rows: matrix kernels like that."""


@dataclass(frozen=True, slots=True)
class MaskToken:
    """Where the mask token stands.

    Attributes:
        token: its text.
        token_id: its id.
        num_rows: of embedding and LM head, the mask token's included.
        num_tokens: of the tokenizer before; rows from here on are spare or new.
        is_own: the tokenizer had a mask token already, whose row is left as it is.
    """

    token: str
    token_id: int
    num_rows: int
    num_tokens: int
    is_own: bool


def add_mask_token(
    tokenizer: PreTrainedTokenizerBase, num_rows: int, wanted: str | None, taken: Collection[int] = ()
) -> MaskToken:
    """Give a tokenizer a mask token, in place.

    The tokenizer's own comes first; then a reserved token that it has by the wanted name; else a new one takes the
    first spare row (the rows of a vocabulary are often rounded up), and where there is none the vocabulary grows.

    Args:
        tokenizer: of the autoregressive model.
        num_rows: of the model's embedding.
        wanted: text of the token; None is the tokenizer's own, else `DEFAULT_MASK_TOKEN`.
        taken: ids that mean something already, such as stop tokens.

    Raises:
        RequestError: the wanted token is blank, ordinary or used already, or the tokenizer has more tokens than rows.
    """
    if wanted is not None and not wanted.strip():
        raise RequestError(f"mask token {wanted!r}: is blank, and would be found in texts; name one such as <|mask|>")
    known = tokenizer.get_vocab()
    num_tokens = max(known.values()) + 1
    if num_tokens > num_rows:
        raise RequestError(f"the tokenizer has {num_tokens} tokens and the model {num_rows} rows; they do not match")
    if wanted in (None, tokenizer.mask_token) and tokenizer.mask_token is not None:
        return MaskToken(tokenizer.mask_token, tokenizer.mask_token_id, num_rows, num_tokens, is_own=True)
    token = wanted if wanted is not None else DEFAULT_MASK_TOKEN
    if token in known:
        _check_reserved(tokenizer, token, known[token], taken)
    tokenizer.add_special_tokens({"mask_token": token})
    token_id = tokenizer.mask_token_id
    if token not in known and token_id != num_tokens:
        raise RequestError(f"the tokenizer's ids have gaps: a new token became {token_id}; name a reserved one")
    if token_id >= num_rows:
        num_rows = -(-(token_id + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    return MaskToken(token, token_id, num_rows, num_tokens, is_own=False)


def _check_reserved(tokenizer: PreTrainedTokenizerBase, token: str, token_id: int, taken: Collection[int]) -> None:
    added = tokenizer.added_tokens_decoder.get(token_id)
    roles = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    if added is None or not added.special or token_id in {*roles, *taken}:
        raise RequestError(
            f"mask token {token!r} means something else in this vocabulary; name a reserved token, or one that it lacks"
        )


@torch.no_grad()
def grow_vocabulary(model: BlockDiffusionModel, mask: MaskToken) -> None:
    """Give embedding and LM head a row of the mask token, in place, and the config its id.

    The row is the mean of the trained rows: it points to no token in particular, and as a row of the head its logit is
    the mean of theirs, which takes at most one part in their number of the probability and is never the largest. So
    are the rows that only round the vocabulary up. Noise, which is there to tell several new tokens apart, has no use
    for a single one.
    """
    old_rows = model.config.vocab_size
    if mask.num_rows != old_rows:
        model.resize_token_embeddings(mask.num_rows, mean_resizing=False)
    new_rows = [] if mask.is_own else sorted({mask.token_id, *range(old_rows, mask.num_rows)})
    trained = torch.arange(mask.num_rows) < mask.num_tokens
    trained[new_rows] = False
    for weight in {id(each): each for each in _rows_of(model)}.values():
        if new_rows:
            weight[new_rows] = weight[trained].float().mean(dim=0).to(weight.dtype)
    model.config.mask_token_id = mask.token_id


def _rows_of(model: BlockDiffusionModel) -> list[torch.Tensor]:
    """The weights with a row a token: of embedding and head, which may be one."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]

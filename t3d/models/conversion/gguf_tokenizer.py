"""The tokenizer of a GGUF file, rebuilt from its metadata.

transformers builds one too, by the model's architecture; how text is split before the merges then gets lost, and with
it that SmolLM2 writes each digit as a token of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from t3d.errors import RequestError, message_of
from t3d.models.conversion.gguf_file import GGUFFile
from t3d.models.plausible import check_ids


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens that are not plain pieces of text."""

    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


def _byte_level() -> pre_tokenizers.PreTokenizer:
    """GPT-2's own words."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _words_and_numbers(digits: str) -> pre_tokenizers.PreTokenizer:
    """The words of Llama 3 and Qwen2, which differ in how many `digits` make a piece."""
    return _words(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
    "qwen2": lambda: _words_and_numbers(r"\p{N}"),
    "llama-bpe": lambda: _words_and_numbers(r"\p{N}{1,3}"),
}
"""Value of `tokenizer.ggml.pre` -> how text is cut before the merges (llama.cpp's src/llama-vocab.cpp)."""
COMPOSED = frozenset({"qwen2"})
"""Of these, the ones that bring text into Unicode's composed form (NFC) first."""
WHOLE_WORDS_FIRST = frozenset({"llama-bpe"})
"""Of these, the ones that take a word that is a token as it is, whatever the merges say."""

ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""transformers' names of special tokens -> the names in `tokenizer.ggml.<name>_token_id`."""
FURTHER_STOPS = ("eot", "eom")
"""Of the same kind: tokens that end a turn, in models that have them beside eos."""


def build_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens and the chat template that the file names.

    Raises:
        RequestError: no tokenizer in the file, one of another kind, or metadata that contradict each other.
    """
    try:
        return _tokenizer(file)
    except RequestError:
        raise
    except Exception as error:  # of tokenizers, and of lists and ids that do not go together
        raise RequestError(f"GGUF file {file.path}: its tokenizer cannot be built: {message_of(error)}") from error


def stop_ids(file: GGUFFile) -> list[int]:
    """All tokens that end an answer, as the metadata name them.

    Raises:
        RequestError: what they name is no token.
    """
    ids = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", *FURTHER_STOPS)]
    given = [token_id for token_id in ids if token_id is not None]
    check_ids(given, "its tokens that end an answer", file.path)
    return sorted(set(given))


def _tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    backend = _backend(file)
    tokens = file.require("tokenizer.ggml.tokens")
    ids = {role: file.get(f"tokenizer.ggml.{name}_token_id") for role, name in ROLES.items()}
    special = {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None}
    if file.get("tokenizer.ggml.add_bos_token", False) and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos_token"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _backend(file: GGUFFile) -> Tokenizer:
    kind, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "gpt-2")
    if kind is None:
        raise RequestError(f"GGUF file {file.path}: holds no tokenizer; convert from the safetensors of this model")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise RequestError(
            f"GGUF file {file.path}: its tokenizer ({kind}, {pre}) is not one of byte-level BPE with "
            f"{', '.join(PRE_TOKENIZERS)}; convert from the safetensors of this model"
        )
    tokens, types = file.texts("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.token_type")
    kept = {token: place for place, token in enumerate(tokens) if types[place] != TokenType.UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in file.require("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=kept, merges=merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(tokens, types, TokenType.CONTROL))
    tokenizer.add_tokens(_added(tokens, types, TokenType.USER_DEFINED))
    return tokenizer


def _added(tokens: list[str], types: list[int], kind: TokenType) -> list[AddedToken]:
    special = kind is TokenType.CONTROL
    of_kind = (token for token, its_kind in zip(tokens, types, strict=True) if its_kind == kind)
    return [AddedToken(token, special=special, normalized=False) for token in of_kind]

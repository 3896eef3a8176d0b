"""A model read from GGUF is the model that it was written from."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from ar_models import KNOWN, SENTENCES, SPECIAL, TEMPLATE, TOKENIZER, TURN_END, TURN_START, converted, make_source
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from t3d.errors import RequestError
from t3d.models.conversion import convert_from_ar

gguf = pytest.importorskip("gguf")

MERGES = [tuple(pair) for pair in json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["merges"]]


def in_pairs(weight, num_heads):
    """What llama.cpp's converter does to queries and keys of Llama: halves of a head become neighbours."""
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return np.swapaxes(halves, 1, 2).reshape(weight.shape)


def write_gguf(file, model, pre="smollm", quantised=None, tokens=None, types=None, **changes):
    """Write a model and the tests' tokenizer by the names that llama.cpp's own package gives tensors.

    `changes` replace metadata by full name; a value of None leaves a field out.
    """
    config = model.config
    arch = config.model_type
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    tokens = tokens or [token for token, _ in sorted(TOKENIZER.get_vocab().items(), key=lambda item: item[1])]
    control = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    fields = {
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim if arch == "qwen3" else None,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": 100_000.0,
        f"{arch}.rope.dimension_count": 8 if arch == "llama" else None,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types or control,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": TURN_START,
        "tokenizer.ggml.eos_token_id": TURN_END,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": TURN_END,
        "tokenizer.chat_template": TEMPLATE,
        **changes,
    }
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture", arch))
    for name, value in fields.items():
        add(writer, name, value)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = in_pairs(weight, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        kind = quantised if quantised is not None and weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")),
            gguf.quantize(weight, kind) if kind != gguf.GGMLQuantizationType.F32 else weight,
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, name, value):
    """A metadata field of the type that llama.cpp gives it."""
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif value is not None:
        writer.add_array(name, value)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gguf_and_safetensors_give_the_same_folder(tmp_path, model_type):
    write_gguf(tmp_path / "model.gguf", make_source(tmp_path / "ar", model_type))
    plain = converted(tmp_path / "ar", tmp_path / "plain")
    read = converted(tmp_path / "model.gguf", tmp_path / "read")
    ours, theirs = read.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read.done == plain.done
    config = {**read.model.config.to_dict(), "initializer_range": 0.3}  # GGUF does not keep how training began
    assert {key: value for key, value in config.items() if key != "_name_or_path"} == {
        key: value for key, value in plain.model.config.to_dict().items() if key != "_name_or_path"
    }
    assert read.model.generation_config.to_dict() == plain.model.generation_config.to_dict()
    assert read.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert read.tokenizer.special_tokens_map == plain.tokenizer.special_tokens_map
    assert read.tokenizer.chat_template == TEMPLATE


def test_transformers_reads_the_same_weights(tmp_path):
    """Two ways to undo the order of queries and keys."""
    make = make_source(tmp_path / "ar")
    write_gguf(tmp_path / "model.gguf", make)
    read = converted(tmp_path, tmp_path / "read", gguf_file="model.gguf").model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    assert read.keys() == theirs.keys()
    assert [name for name in read if not torch.equal(read[name][: len(theirs[name])], theirs[name])] == []


def test_quantised_weights(tmp_path):
    """Q8_0: 32 weights at a time are n / 127 of their largest, |n| <= 127 rounded, the scale rounded to 11 bits."""
    source = make_source(tmp_path / "ar", hidden_size=64, intermediate_size=96)
    write_gguf(
        tmp_path / "model.gguf", source, quantised=gguf.GGMLQuantizationType.Q8_0, **{"llama.attention.key_length": 8}
    )
    read = converted(tmp_path / "model.gguf", tmp_path / "read").model.state_dict()
    for name, weight in source.state_dict().items():
        if weight.dim() == 2 and "embed" not in name and "head" not in name:
            largest = weight.reshape(-1, 32).abs().amax(dim=1).repeat_interleave(32).reshape(weight.shape)
            assert ((read[name] - weight).abs() <= largest / 127 * (0.5 + 127 / 2**11)).all()
            assert not torch.equal(read[name], weight)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Rebuilt from GGUF."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_gguf(folder / "model.gguf", make_source(folder / "ar"))
    return converted(folder / "model.gguf", folder / "out").tokenizer


def merged(word):
    """Byte-pair encoding by its definition: the earliest merge that applies, as long as one does."""
    pieces, rank = list(word), {pair: place for place, pair in enumerate(MERGES)}
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        best, joined = min(pairs, key=rank.__getitem__), []
        while pieces:
            size = 2 if tuple(pieces[:2]) == best else 1
            joined.append("".join(pieces[:size]))
            pieces = pieces[size:]
        pieces = joined


@pytest.mark.parametrize("word", ["apples", "Ġapples", "ĠHe", "that", "Ġmanyapples", "zzz"])
def test_words_are_cut_as_the_merges_say(tokenizer, word):
    assert tokenizer.tokenize(word.replace("Ġ", " ")) == merged(word)


def test_each_digit_is_a_token(tokenizer):
    assert tokenizer.tokenize("12 apples in 2024") == ["1", "2", *merged("Ġapples"), *merged("Ġin"), "Ġ", *"2024"]


@given(st.text())
def test_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_are_one_token(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": SENTENCES[0]}], tokenize=False)
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-2], ids[-1]) == (TURN_START, TURN_END, TURN_START)
    assert ids[1:-2] == tokenizer(SENTENCES[0])["input_ids"]


def test_unused_rows_are_spare(tmp_path):
    """Vocabularies are rounded up by tokens that no text gives; the mask token takes the first of them."""
    source = make_source(tmp_path / "ar", vocab_size=KNOWN + 3)
    tokens = [token for token, _ in sorted(TOKENIZER.get_vocab().items(), key=lambda item: item[1])]
    types = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    write_gguf(
        tmp_path / "model.gguf",
        source,
        tokens=[*tokens, "[PAD0]", "[PAD1]", "[PAD2]"],
        types=[*types, *[gguf.TokenType.UNUSED] * 3],
    )
    done = convert_from_ar(str(tmp_path / "model.gguf"), tmp_path / "out")
    assert (done.mask_token_id, done.new_rows) == (KNOWN, KNOWN + 3)


def test_a_beginning_of_text_that_is_asked_for(tmp_path):
    write_gguf(tmp_path / "model.gguf", make_source(tmp_path / "ar"), **{"tokenizer.ggml.add_bos_token": True})
    new = converted(tmp_path / "model.gguf", tmp_path / "out")
    assert new.tokenizer("Tom")["input_ids"] == [
        TURN_START,
        *new.tokenizer("Tom", add_special_tokens=False)["input_ids"],
    ]


def test_further_stop_tokens(tmp_path):
    write_gguf(tmp_path / "model.gguf", make_source(tmp_path / "ar"), **{"tokenizer.ggml.eot_token_id": 3})
    assert converted(tmp_path / "model.gguf", tmp_path / "out").done.stop_token_ids == (TURN_END, 3)


def test_numbers_are_cut_in_threes_where_the_file_says_so(tmp_path):
    write_gguf(tmp_path / "model.gguf", make_source(tmp_path / "ar"), pre="llama-bpe")
    backend = converted(tmp_path / "model.gguf", tmp_path / "out").tokenizer.backend_tokenizer
    cut = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("I'm 12345 years")]
    assert cut == ["I", "'m", "Ġ", "123", "45", "Ġyears"]


REFUSALS = {
    "architecture": ({"general.architecture": "gemma"}, "'gemma' cannot be converted"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "scaled": ({"llama.rope.scaling.type": "yarn"}, "rotary embedding is scaled"),
    "rotated in part": ({"llama.rope.dimension_count": 4}, "part of each head"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "holds no tokenizer"),
    "sentencepiece": ({"tokenizer.ggml.model": "llama"}, "not one of byte-level BPE"),
    "other words": ({"tokenizer.ggml.pre": "tekken"}, "not one of byte-level BPE"),
    "merges of no tokens": ({"tokenizer.ggml.merges": ["zz qq"]}, "its tokenizer cannot be built: .*zz"),
    "end of no token": ({"tokenizer.ggml.eos_token_id": 99_999}, "its tokenizer cannot be built"),
    "field missing": ({"llama.block_count": None}, "have no llama.block_count"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path, case):
    changes, expected = REFUSALS[case]
    write_gguf(tmp_path / "model.gguf", make_source(tmp_path / "ar"), **changes)
    with pytest.raises(RequestError, match=expected) as refusal:
        convert_from_ar(str(tmp_path / "model.gguf"), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()

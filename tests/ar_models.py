"""Tiny autoregressive models, as makers publish them, and what they are converted into."""

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from t3d.models import load_model, load_tokenizer
from t3d.models.conversion import convert_from_ar

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved|>"]
END_OF_TEXT, TURN_START, TURN_END, RESERVED = range(4)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
SENTENCES = [
    "Tom has 12 apples and buys 30 more.",
    "How many apples does he have? He has 42 apples, and that's all.",
] * 3

SHAPES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "rope_theta": 100_000.0,
    "bos_token_id": TURN_START,
    "eos_token_id": TURN_END,
    "pad_token_id": TURN_END,
}
CONFIGS = {
    "llama": (LlamaConfig, "block_llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen2": (Qwen2Config, "block_qwen2", {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, "sdar", {"tie_word_embeddings": True}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        "sdar_moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
    ),
}


def make_tokenizer():
    """As SmolLM2's: byte-level BPE in which each digit is a token; no mask token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2],
        unk_token=SPECIAL[0], chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZER = make_tokenizer()
KNOWN = len(TOKENIZER)


def make_source(folder, model_type="llama", tokenizer=TOKENIZER, **fields):
    """A random autoregressive model as a folder."""
    config_class, _, own = CONFIGS[model_type]
    torch.manual_seed(0)
    config = config_class(**{**SHAPES, "vocab_size": KNOWN, **own, **fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():  # biases and norms start as 0 and 1, which would hide mistakes
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def converted(source, out, **options):
    done = convert_from_ar(str(source), out, **{"dtype": "float32", **options})
    return SimpleNamespace(done=done, model=load_model(out, device="cpu"), tokenizer=load_tokenizer(out))

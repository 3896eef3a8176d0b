"""The task's own tokenizer: byte-level BPE of just under 600 ids in which every digit stands alone.

The built folder ships as package data; `python -m t3d.tasks.story.tokenizer` rebuilds it, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from t3d.tasks.story.examples import make

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN, MASK_TOKEN, PAD_TOKEN = "<|endoftext|>", "<|mask|>", "<|pad|>"
VOCABULARY_LIMIT = 600
SHIPPED = Path(__file__).parents[2] / "assets" / "story-tokenizer"

_TRAINING_DOCUMENTS = 4000
_TRAINING_SEED = 0
# A digit; a word or a run of punctuation, each with the space before it; other white space.
_PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer on documents of the train split; every build is the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=[EOS_TOKEN, MASK_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    examples = make("train", _TRAINING_DOCUMENTS, _TRAINING_SEED)
    tokenizer.train_from_iterator((example.prompt + example.response for example in examples), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `PreTrainedTokenizerFast.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "mask_token": MASK_TOKEN,
        "pad_token": PAD_TOKEN,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that ships with the package."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(SHIPPED)


if __name__ == "__main__":
    save_tokenizer(build_tokenizer(), SHIPPED)

"""Which tokens end a response."""

from __future__ import annotations

from typing import Protocol

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


class NamesStops(Protocol):
    """Whose configs name stop tokens: a model, or what is known of one without its weights."""

    @property
    def config(self) -> PretrainedConfig:
        """Of the model."""

    @property
    def generation_config(self) -> GenerationConfig | None:
        """None where there is none."""


def stop_token_ids(model: NamesStops, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Every id that ends a response: `generation_config`'s, the config's and the tokenizer's, sorted."""
    found: set[int] = set()
    for owner in (model.generation_config, model.config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return tuple(sorted(found))

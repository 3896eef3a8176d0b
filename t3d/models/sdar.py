"""The SDAR family: Qwen3's layers, a mask token and a block size.

A thin layer over transformers' own classes, so that saving, PEFT, gradient checkpointing, FSDP and the servers
that know SDAR work with it. Attention patterns come from outside, as masks (`t3d.models.attention`).
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

DEFAULT_BLOCK_SIZE = 4
"""The released SDAR models' block size, for configs that do not name one."""


class SDARConfig(Qwen3Config):
    """Qwen3's config plus `mask_token_id` and `block_size`, as the released SDAR models have them."""

    model_type = "sdar"

    mask_token_id: int | None = None
    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # names remote code, which is never run here
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Adds `rope_theta` beside transformers 5's `rope_parameters`: servers on older releases read that."""
        fields = super().to_dict()
        fields["rope_theta"] = (fields.get("rope_parameters") or {}).get("rope_theta")
        return fields


def mask_token_id(config: SDARConfig) -> int:
    """The config's mask id; `load_model` has made sure that there is one."""
    assert config.mask_token_id is not None
    return config.mask_token_id


class SDARForCausalLM(Qwen3ForCausalLM):
    """Qwen3 decoded block by block; logits at position i predict token i (no shift)."""

    config_class = SDARConfig
    config: SDARConfig


AutoConfig.register("sdar", SDARConfig, exist_ok=True)
AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM, exist_ok=True)

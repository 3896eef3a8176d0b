"""What every family of block-diffusion models has: a mask token, a block size, and no logit shift.

A family is a thin layer over transformers' own classes, so that saving, PEFT, gradient checkpointing and FSDP work with
it: one file that derives a config and a model from these two and from transformers' (in this order), and a line in
`t3d.models.families`. Attention patterns come from outside, as masks (`t3d.models.attention`).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from t3d.models.sharding import Sharding

DEFAULT_BLOCK_SIZE = 4
"""The released SDAR models' block size, for configs that do not name one."""


class BlockDiffusionConfig(PreTrainedConfig):
    """A decoder's config plus `mask_token_id` and `block_size`, as the released SDAR models have them."""

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


class BlockDiffusionModel(PreTrainedModel):
    """A decoder with an LM head that is decoded block by block; logits at position i predict token i (no shift)."""

    config_class = BlockDiffusionConfig
    config: BlockDiffusionConfig
    model: Any
    lm_head: nn.Linear
    sharding: Sharding | None = None
    """The processes that hold it together, where it is not this one alone."""


def mask_token_id(config: BlockDiffusionConfig) -> int:
    """The config's mask id; `load_model` has made sure that there is one."""
    assert config.mask_token_id is not None
    return config.mask_token_id

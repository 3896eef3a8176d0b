"""The SDAR family's mixtures of experts: Qwen3-MoE's layers, as SDAR-30B-A3B has them.

transformers holds the experts of a layer in two tensors (`mlp.experts.gate_up_proj`, `mlp.experts.down_proj`); files
hold each expert's three matrices by name, as the released ones do and as the servers that know SDAR load them.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from t3d.models.experts import EXPERTS
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel


class SDARMoeConfig(BlockDiffusionConfig, Qwen3MoeConfig):
    """Qwen3-MoE's config, what `BlockDiffusionConfig` adds, and the size of a head as the other families name it."""

    model_type = "sdar_moe"

    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Calls the number of experts as the released config does; transformers 5 has another name for it."""
        fields = super().to_dict()
        fields["num_experts"] = fields.pop("num_local_experts")
        return fields


class SDARMoeForCausalLM(BlockDiffusionModel, Qwen3MoeForCausalLM):
    """Qwen3-MoE, decoded block by block; `t3d.models.experts` says how its experts are computed."""

    config_class = SDARMoeConfig
    config: SDARMoeConfig

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """transformers asks this of every model; a caller's own choice stands."""
        return super().get_correct_experts_implementation(requested_experts or EXPERTS)


# transformers knows by `model_type` how to fuse the experts of a file, and how to take them apart for one
register_checkpoint_conversion_mapping(
    SDARMoeConfig.model_type, get_checkpoint_conversion_mapping(Qwen3MoeConfig.model_type), overwrite=True
)

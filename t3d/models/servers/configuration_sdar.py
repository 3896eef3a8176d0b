"""The config of an SDAR model, for servers: a copy of this file lies beside the weights of each saved model.

LMDeploy and SGLang have SDAR's layers but not its config, whose class they take from the model's folder (`auto_map` of
config.json). Some run on transformers 4, some on transformers 5.
"""

from typing import Any

from transformers import Qwen3Config, Qwen3MoeConfig


class SDARConfig(Qwen3Config):
    """Qwen3's config; `block_size`, `mask_token_id` and whatever else config.json holds become attributes too."""

    model_type = "sdar"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        if "rope_theta" in fields:  # transformers 5 moves it into `rope_parameters`, where SGLang's SDAR does not look
            self.rope_theta = fields["rope_theta"]


class SDARMoeConfig(Qwen3MoeConfig):
    """Qwen3-MoE's config, in the same way."""

    model_type = "sdar_moe"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        if "rope_theta" in fields:
            self.rope_theta = fields["rope_theta"]

"""The registry of model families."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from t3d.models.block_llama import BlockLlamaConfig, BlockLlamaForCausalLM
from t3d.models.block_qwen2 import BlockQwen2Config, BlockQwen2ForCausalLM
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel
from t3d.models.sdar import SDARConfig, SDARForCausalLM
from t3d.models.sdar_moe import SDARMoeConfig, SDARMoeForCausalLM

FAMILIES: dict[str, tuple[type[BlockDiffusionConfig], type[BlockDiffusionModel]]] = {
    "sdar": (SDARConfig, SDARForCausalLM),
    "sdar_moe": (SDARMoeConfig, SDARMoeForCausalLM),
    "block_llama": (BlockLlamaConfig, BlockLlamaForCausalLM),
    "block_qwen2": (BlockQwen2Config, BlockQwen2ForCausalLM),
}
"""`model_type` of a config -> the classes that read it."""

for _model_type, (_config_class, _model_class) in FAMILIES.items():
    AutoConfig.register(_model_type, _config_class, exist_ok=True)
    AutoModelForCausalLM.register(_config_class, _model_class, exist_ok=True)

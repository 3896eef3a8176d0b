"""Typed recipes and their groups. Imports nothing of ours but the error types."""

from t3d.config.base import Config
from t3d.config.groups import (
    AdapterConfig,
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    CorruptionConfig,
    DataConfig,
    DistributedConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ReferenceConfig,
    TrackingConfig,
)
from t3d.config.prompting import PromptConfig
from t3d.config.recipe import Recipe, apply_override, load_recipe, make_recipe
from t3d.config.rounds import RolloutConfig, RoundConfig, StopRoundsConfig

__all__ = [
    "AdapterConfig",
    "BatchConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "CorruptionConfig",
    "DataConfig",
    "DistributedConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PromptConfig",
    "Recipe",
    "ReferenceConfig",
    "RolloutConfig",
    "RoundConfig",
    "StopRoundsConfig",
    "TrackingConfig",
    "apply_override",
    "load_recipe",
    "make_recipe",
]

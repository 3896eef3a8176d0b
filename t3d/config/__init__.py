"""Typed recipes and their groups. Imports nothing of ours but the error types."""

from t3d.config.base import Config
from t3d.config.groups import (
    AdapterConfig,
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    CorruptionConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ReferenceConfig,
    TrackingConfig,
)
from t3d.config.recipe import Recipe, load_recipe, make_recipe

__all__ = [
    "AdapterConfig",
    "BatchConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "CorruptionConfig",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Recipe",
    "ReferenceConfig",
    "TrackingConfig",
    "load_recipe",
    "make_recipe",
]

"""From a finished response to a state the decoder really was in, and from many of those to one packed batch."""

from t3d.corruption.hiding import HIDERS, corrupt, reveal_rank, row_generator
from t3d.corruption.packing import pack, pack_in_budget
from t3d.corruption.records import LossTokens, NoisyExample, PackedBatch, TrainingRow

__all__ = [
    "HIDERS",
    "LossTokens",
    "NoisyExample",
    "PackedBatch",
    "TrainingRow",
    "corrupt",
    "pack",
    "pack_in_budget",
    "reveal_rank",
    "row_generator",
]

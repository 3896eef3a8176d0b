"""Trajectories on disk: `write` and `read` them, or write a long rollout shard by shard (`TrajectoryWriter`)."""

from t3d.trajectories.parts import WHOLE, Part
from t3d.trajectories.reading import FolderState, count, read, read_meta, state_of
from t3d.trajectories.rollout import rollout
from t3d.trajectories.schema import SCHEMA, TrajectoryMeta
from t3d.trajectories.store import TrajectoryWriter, write
from t3d.trajectories.work import RolloutSummary

__all__ = [
    "SCHEMA",
    "WHOLE",
    "FolderState",
    "Part",
    "RolloutSummary",
    "TrajectoryMeta",
    "TrajectoryWriter",
    "count",
    "read",
    "read_meta",
    "rollout",
    "state_of",
    "write",
]

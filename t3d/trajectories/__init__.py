"""Trajectories on disk: `write` and `read` them, or write a long rollout shard by shard (`TrajectoryWriter`)."""

from t3d.trajectories.rollout import RolloutSummary, rollout
from t3d.trajectories.schema import SCHEMA, TrajectoryMeta
from t3d.trajectories.store import TrajectoryWriter, count, read, read_meta, write

__all__ = [
    "SCHEMA",
    "RolloutSummary",
    "TrajectoryMeta",
    "TrajectoryWriter",
    "count",
    "read",
    "read_meta",
    "rollout",
    "write",
]

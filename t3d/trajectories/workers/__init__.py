"""Rolling out with workers on many GPUs and machines, through Ray."""

from t3d.trajectories.workers.driver import rollout_by_ray
from t3d.trajectories.workers.ray_crew import Cluster
from t3d.trajectories.workers.worker import EngineSpec

__all__ = ["Cluster", "EngineSpec", "rollout_by_ray"]

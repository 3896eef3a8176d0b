"""Teacher in the loop: rounds of rollout and training."""

from t3d.training.rounds.run import RoundsRun, train

__all__ = ["RoundsRun", "train"]

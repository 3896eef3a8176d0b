"""Teacher in the loop: rounds of rollout and training."""

from t3d.training.rounds.run import RoundsRun, run_recipe, train

__all__ = ["RoundsRun", "run_recipe", "train"]

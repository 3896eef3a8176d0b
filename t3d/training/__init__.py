"""Training: a recipe in, a student, its checkpoints and its metrics out."""

from t3d.training.data import load_rows
from t3d.training.rounds import run_recipe, train
from t3d.training.trainer import Trainer

__all__ = ["Trainer", "load_rows", "run_recipe", "train"]

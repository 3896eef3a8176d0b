"""The Triton twins of `t3d.engine.continuous.steps`: same arguments and results, one launch each."""

from t3d.engine.continuous.begin_triton import begin
from t3d.engine.continuous.finish_triton import finish

__all__ = ["begin", "finish"]

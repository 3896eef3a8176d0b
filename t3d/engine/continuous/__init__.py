"""The fast engine: continuous batching, paged keys and values, and no host in the loop.

`core` is the loop. On the host: `sequence` (one request's life), `scheduler` (who runs), `pages` (who owns which
memory), `forecast` (what the device will be doing, one step ahead of its reports). On the device: `state` (everything
that changes at every step), `steps` (what happens before and after the model), `decoder` (the model), `runner` (CUDA
graphs).
"""

from t3d.engine.continuous.decoder import why_unsupported
from t3d.engine.continuous.engine import ContinuousEngine

__all__ = ["ContinuousEngine", "why_unsupported"]

"""Before anyone pays: what a recipe takes on a cluster, and what this machine has.

`gpus` and `measured` hold the facts: GPUs by their data sheets, and what was measured. `subject` is the model without
weights, `workload` what a step holds, made by training's own code. `holding`, `memory`, `seconds`, `host` and
`rollouts` are the arithmetic over these; `training` puts one training together, `advice` says what to change where it
does not fit, and `examination` is the whole, training's own checks included. `machine` looks around here; `printing`
shows it all.
"""

from typing import TYPE_CHECKING, Any

from t3d.doctor.machine import Finding, look_around

if TYPE_CHECKING:
    from t3d.doctor.examination import Examination, examine
    from t3d.doctor.gpus import GPUS, Cluster, find_gpu, gpu_called

__all__ = ["GPUS", "Cluster", "Examination", "Finding", "examine", "find_gpu", "gpu_called", "look_around"]


def __getattr__(name: str) -> Any:
    """What examines a recipe, on first use: it imports models and training; a look at the machine does not need it."""
    if name in ("Examination", "examine"):
        from t3d.doctor import examination

        return getattr(examination, name)
    if name in ("GPUS", "Cluster", "find_gpu", "gpu_called"):
        from t3d.doctor import gpus

        return getattr(gpus, name)
    raise AttributeError(f"module 't3d.doctor' has no attribute {name!r}")

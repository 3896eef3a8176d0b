"""Before anyone pays: what a recipe takes on a cluster, and what this machine has.

`gpus` and `measured` hold the facts: GPUs by their data sheets, and what was measured. `subject` is the model without
weights, `workload` what a step holds, made by training's own code. `holding`, `memory`, `seconds`, `host` and
`rollouts` are the arithmetic over these; `training` puts one training together, `advice` says what to change where it
does not fit, and `examination` is the whole, training's own checks included. `machine` looks around here; `printing`
shows it all.
"""

from t3d.doctor.examination import Examination, examine
from t3d.doctor.gpus import GPUS, Cluster, find_gpu, gpu_called
from t3d.doctor.machine import Finding, look_around

__all__ = ["GPUS", "Cluster", "Examination", "Finding", "examine", "find_gpu", "gpu_called", "look_around"]

"""Speed, measured: what `t3d bench` runs and writes down.

Decoding: `plan` says what to measure, `batches` and `sustained` are the two ways to measure, `timing` what they give,
`ceilings` what the device does at best, `roofline` the least that the same work can take there, `report` the rows and
the table; `rollout` runs a plan.

Training: `train_plan` says what to measure, `lengths` which rows to train on, `training_report` the row and the table;
`training` runs a plan.

Both: `shapes` are the models, `result_file` what is written.
"""

from t3d.bench.lengths import LENGTHS
from t3d.bench.plan import Plan, Queue
from t3d.bench.report import Row, rows_table
from t3d.bench.rollout import bench_rollout
from t3d.bench.shapes import SHAPES
from t3d.bench.train_plan import TrainPlan
from t3d.bench.training import bench_train
from t3d.bench.training_report import TrainRow, row_table

__all__ = [
    "LENGTHS",
    "SHAPES",
    "Plan",
    "Queue",
    "Row",
    "TrainPlan",
    "TrainRow",
    "bench_rollout",
    "bench_train",
    "row_table",
    "rows_table",
]

"""Speed, measured: what `t3d bench` runs and writes down.

`plan` says what to measure, `shapes` which models, `batches` and `sustained` are the two ways to measure, `timing` what
they give, `ceilings` what the device does at best, `roofline` the least that the same work can take there, `report` the
rows, the file and the table; `rollout` runs a plan.
"""

from t3d.bench.plan import Plan, Queue
from t3d.bench.report import Row, rows_table
from t3d.bench.rollout import bench_rollout
from t3d.bench.shapes import SHAPES

__all__ = ["SHAPES", "Plan", "Queue", "Row", "bench_rollout", "rows_table"]

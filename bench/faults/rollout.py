"""What faults cost a rollout by Ray workers: kill workers and a node on purpose, and compare with an undisturbed one.

    python bench/faults/rollout.py --out bench/results/scaling/rollout-faults.json

Starts a local cluster of two nodes of one core each. For every fault: what was killed while it had which shard in hand,
after how many seconds the driver noticed, after how many the shard was on disk all the same, and how many rows were
lost, were there twice or differ from those of a single process; after a resume, where the rollout ended with an error.
Also what the driver spends on a shard of ordinary size.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from t3d.config import PromptConfig
from t3d.errors import WorkError
from t3d.files import write_whole
from t3d.models import load_tokenizer
from t3d.tasks import get_task
from t3d.tasks.prompts import Questions, put_questions
from t3d.trajectories import TrajectoryWriter, read, read_meta, rollout
from t3d.trajectories.schema import rows_to_table
from t3d.trajectories.workers import Cluster, EngineSpec, rollout_by_ray
from t3d.trajectories.workers.dealing import Note
from t3d.trajectories.workers.ray_crew import import_ray
from t3d.trajectories.workers.worker import Welcome
from t3d.types import Decoding

MODEL, NUM_ROWS, ROWS_PER_SHARD = "story-mini", 80, 8
DECODING = Decoding(temperature=1.0, max_new_tokens=48, seed=3)
SECONDS_INTO_THE_SHARD = 0.1
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}

Kill = Callable[[int], bool]
"""Kills the worker with this process id, or what it runs on, in the middle of a shard; False if it cannot."""


class Fault:
    """Kills `times` workers, each when it is given `shard` (None: any shard, once four are done).

    Args:
        name: what is killed.
        kill: how; None kills nothing.
        shard: to wait for.
        times: how often.
    """

    def __init__(self, name: str, kill: Kill | None, shard: int | None = None, times: int = 1) -> None:
        self.name, self._kill, self._shard, self._left = name, kill, shard, times if kill else 0
        self.started = 0.0
        self.killed: list[tuple[float, int]] = []
        self.noticed: list[float] = []
        self.done: dict[int, float] = {}

    def __call__(self, note: Note, welcomes: dict[int, Welcome]) -> None:
        """Watch a rollout, as `rollout_by_ray` offers it."""
        now = time.monotonic()
        self.started = self.started or now
        if note.what == "lost":
            self.noticed.append(now)
        elif note.what == "done" and note.shard is not None:
            self.done[note.shard] = now
        elif note.what == "given" and note.shard is not None and self._is_time(note.shard):
            assert self._kill is not None
            if self._kill(welcomes[note.worker].pid):
                self.killed.append((time.monotonic(), note.shard))
                self._left -= 1

    def _is_time(self, shard: int) -> bool:
        return self._left > 0 and (len(self.done) >= 4 if self._shard is None else shard == self._shard)

    def figures(self, folder: Path, expected: Path) -> dict[str, Any]:
        """What it cost, from a rollout into `folder`; `expected` holds the undisturbed rows."""
        rows, right = (list(read(each, allow_partial=True)) for each in (folder, expected))
        names = Counter((row.prompt_id, row.sample) for row in rows)
        return {
            "killed": self.name,
            "at_seconds": [round(at - self.started, 2) for at, _ in self.killed],
            "with_shard": [shard for _, shard in self.killed],
            "noticed_after_seconds": [
                round(seen - at, 2) for (at, _), seen in zip(self.killed, self.noticed, strict=True)
            ],
            "redone_after_seconds": [
                round(self.done[shard] - at, 2) if shard in self.done else None for at, shard in self.killed
            ],
            "rows_lost": len(right) - len(names),
            "rows_twice": sum(count - 1 for count in names.values()),
            "rows_that_differ": len([row for row in rows if row not in right]),
            "rollout_seconds": round(max(self.done.values()) - self.started, 2),
        }


def measure(folder: Path, nodes: Any) -> list[dict[str, Any]]:
    """The table: every fault in turn, each with a rollout of its own."""
    expected = roll_out_here(folder / "expected")

    def kill_node(pid: int) -> bool:
        node = node_of(pid, nodes)
        if node is nodes.head_node:
            return False
        time.sleep(SECONDS_INTO_THE_SHARD)
        nodes.remove_node(node, allow_graceful=False)
        return True

    faults = [
        Fault("nothing", None),
        Fault("a worker, SIGKILL", kill_worker),
        Fault("three workers in turn, each with shard 5", kill_worker, 5, 3),
        Fault("a node with its worker", kill_node),
    ]
    table = []
    for number, fault in enumerate(faults):
        message = roll_out(folder / str(number), fault)
        if message is not None:
            roll_out_here(folder / str(number))
        table.append({**fault.figures(folder / str(number), expected), "ended_with": message})
        print(json.dumps(table[-1]), flush=True)
    return table


def kill_worker(pid: int) -> bool:
    """What the kernel does when memory runs out."""
    time.sleep(SECONDS_INTO_THE_SHARD)
    os.kill(pid, signal.SIGKILL)
    return True


def roll_out_here(folder: Path) -> Path:
    """The rows of a single process, or what is missing of them."""
    engine, questions = EngineSpec(MODEL, device="cpu").build(), asked()
    rollout(engine, questions.prompts, DECODING, folder, **how(questions), resume=True)
    return folder


def roll_out(folder: Path, fault: Fault) -> str | None:
    """The rows of Ray workers under a fault; the error that it ended with."""
    spec, questions = EngineSpec(MODEL, device="cpu"), asked()
    tokenizer = load_tokenizer(MODEL)
    try:
        rollout_by_ray(
            spec, tokenizer, questions.prompts, DECODING, folder, **how(questions), cluster=Cluster(), watch=fault
        )
    except WorkError as error:
        return str(error)
    return None


def asked() -> Questions:
    """The prompts."""
    task = get_task("story")
    problems = task.problems("train", NUM_ROWS, DECODING.seed)
    return put_questions(task, problems, PromptConfig(), load_tokenizer(MODEL))


def how(questions: Questions) -> dict[str, Any]:
    """What both ways are told."""
    return {"model_name": MODEL, "form": questions.form, "rows_per_shard": ROWS_PER_SHARD}


def node_of(pid: int, nodes: Any) -> Any:
    """The node that started a process."""
    raylet = psutil.Process(pid).ppid()
    every = [nodes.head_node, *nodes.worker_nodes]
    return next(node for node in every if node.all_processes["raylet"][0].process.pid == raylet)


def driver_cost(folder: Path, ray: Any, source: Path, num_rows: int = 1024, num_tokens: int = 300) -> dict[str, Any]:
    """Seconds that the driver spends on taking in (from its own node) and writing a shard of random tokens."""
    row, meta = next(iter(read(source))), read_meta(source)
    rng = np.random.default_rng(0)
    shape = (num_rows, num_tokens)
    columns = (rng.integers(0, 150_000, shape), rng.integers(1, num_tokens, shape), rng.random(shape, dtype=np.float32))
    rows = [
        replace(row, response_ids=ids, reveal_step=steps, confidence=confidence)
        for ids, steps, confidence in zip(*columns, strict=True)
    ]
    sent = ray.put(rows_to_table(rows, meta, "rows"))
    writer = TrajectoryWriter(folder, meta, "", num_shards=20)
    started = time.monotonic()
    for index in writer.missing:
        writer.write_table(index, ray.get(sent))
    seconds = (time.monotonic() - started) / 20
    return {"rows": num_rows, "tokens_a_row": num_tokens, "seconds": round(seconds, 4)}


def main() -> None:
    """Measure and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    out = arguments.parse_args().out
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    ray = import_ray()
    from ray.cluster_utils import Cluster as Nodes

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = measure(Path(folder), nodes)
            cost = driver_cost(Path(folder) / "driver", ray, Path(folder) / "expected")
    finally:
        ray.shutdown()
        nodes.shutdown()
    size = {"model": MODEL, "rows": NUM_ROWS, "rows_per_shard": ROWS_PER_SHARD, "nodes": "2 with 1 CPU core each"}
    write_whole(out, json.dumps({**size, "ray": ray.__version__, "faults": table, "driver": cost}, indent=1) + "\n")


if __name__ == "__main__":
    main()

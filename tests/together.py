"""Runs that several processes train together on the CPU, forked from one that has imported everything.

    python together.py JOBS.json

The file holds groups of (number of processes, jobs); the processes of a group do its jobs one after another.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from forking import fork
from training_runs import cut_short

import t3d.training.student as student_module
from t3d.config import Recipe, make_recipe
from t3d.errors import RequestError, WorkError
from t3d.training import Trainer, run_recipe
from t3d.training.parallel.tensors import local_part, whole

LONGEST = 400
"""Seconds of all groups together."""


@dataclass
class Job:
    """One run.

    Attributes:
        recipe: of the run.
        notes: folder for `failure-<process>` and what else the processes note.
        goes_on_from: a finished run, of which it goes on as after its first checkpoint.
        looks_at_start: it is only built, and each process notes what it then holds (`start-<process>.pt`).
        largest_file: most bytes that any but the main process may write to a file.
        own_disks: each process has a folder of its own in place of the one that all share.
    """

    recipe: Recipe
    notes: Path
    goes_on_from: Path | None = None
    looks_at_start: bool = False
    largest_file: int | None = None
    own_disks: bool = False


def train_together(groups, folder):
    """Do the jobs of [(number of processes, jobs), ...]."""
    told = [
        (count, [{**asdict(job), "recipe": job.recipe.model_dump(mode="json")} for job in jobs])
        for count, jobs in groups
    ]
    file = folder / "jobs.json"
    file.write_text(json.dumps(told, default=str))
    done = subprocess.run(
        [sys.executable, __file__, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")


def main():
    for count, jobs in json.loads(Path(sys.argv[1]).read_text()):
        fork(count, partial(work_through, [SimpleNamespace(**job) for job in jobs]))


def work_through(jobs):
    """Do jobs one after another, as one of several processes."""
    for job in jobs:
        work(job)
    torch.distributed.destroy_process_group()


def work(job):
    """Do one job, and note how often this process read a whole model."""
    torch.set_num_threads(1)
    state, notes, recipe = PartialState(cpu=True), Path(job.notes), make_recipe(job.recipe)
    notes.mkdir(parents=True, exist_ok=True)
    if job.own_disks:
        own = notes / f"disk-{state.process_index}"
        own.mkdir()
        os.chdir(own)
    if job.goes_on_from is not None:
        if state.is_main_process:
            cut_short(Path(job.goes_on_from), Path(recipe.out))
        state.wait_for_everyone()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if job.largest_file is not None and not state.is_main_process:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.largest_file, unlimited[1]))
    loads, load = [], student_module.load_model
    student_module.load_model = lambda *given, **named: loads.append(given) or load(*given, **named)
    try:
        if job.looks_at_start:
            torch.save(start_of(Trainer(recipe)), notes / f"start-{state.process_index}.pt")
        else:
            run_recipe(recipe, resume=job.goes_on_from is not None)
    except (RequestError, WorkError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        (notes / f"failure-{state.process_index}").write_text(str(error))
    finally:
        student_module.load_model = load
    (notes / f"loads-{state.process_index}").write_text(str(len(loads)))


def start_of(trainer):
    """Weights of student and reference, gathered; buffers, and how many numbers of the student's this process holds."""
    student, reference = trainer.model, trainer.learner.reference.model
    return {
        "student": {name: whole(weight).clone() for name, weight in student.named_parameters()},
        "reference": {name: whole(weight).clone() for name, weight in reference.named_parameters()},
        "buffers": [dict(model.named_buffers()) for model in (student, reference)],
        "held": sum(local_part(weight).numel() for weight in student.parameters()),
    }


if __name__ == "__main__":
    main()

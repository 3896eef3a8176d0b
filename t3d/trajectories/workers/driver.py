"""Rolling out through Ray: the driver cuts the work and writes the files, workers decode.

Rows come back to the driver as finished tables: workers need not share a disk with it, and a folder has one writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from t3d.config import PromptConfig
from t3d.progress import progress
from t3d.trajectories.rollout import ROWS_PER_SHARD, paces
from t3d.trajectories.store import TrajectoryWriter
from t3d.trajectories.work import RolloutSummary, make_work_list
from t3d.trajectories.workers.dealing import Dealer, Note
from t3d.trajectories.workers.ray_crew import Cluster, RayCrew
from t3d.trajectories.workers.worker import EngineSpec, Finished, Job, Welcome
from t3d.types import Decoding, Prompt

Watch = Callable[[Note, dict[int, Welcome]], None]
"""Is told what happens, and where the workers are that have ever been ready."""


def rollout_by_ray(
    spec: EngineSpec,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    folder: str | Path,
    *,
    cluster: Cluster,
    model_name: str,
    form: PromptConfig | None = None,
    samples: int = 1,
    resume: bool = False,
    rows_per_shard: int = ROWS_PER_SHARD,
    watch: Watch = lambda note, workers: None,
) -> RolloutSummary:
    """`t3d.trajectories.rollout` by Ray workers, with the same rows. Uses a connection to Ray that is there already.

    A worker that dies costs the shard in its hands, which another one redoes.

    Args:
        spec: of the engine that each worker makes itself; a path of it must lead to the model on every machine.
        tokenizer: the model's.
        prompts, decoding, folder, model_name, form, samples, resume, rows_per_shard: as there.
        cluster: where workers run.
        watch: for tests and measurements.

    Raises:
        RequestError: as there; no Ray, or no such cluster.
        WorkError: as there; no worker is left, or a shard was given up after all others were done.
    """
    work = make_work_list(prompts, tokenizer, decoding.seed, samples, rows_per_shard)
    if Path(spec.model).is_dir():  # seen from the folder that workers are in
        spec = replace(spec, model=str(Path(spec.model).resolve()))
    job = Job(spec, decoding, model_name, form, num_threads=cluster.cpus_per_worker)
    with RayCrew(job, work, cluster) as crew:
        work.warn_of_idle(crew.num_workers)
        num_workers = min(crew.num_workers, len(work.shards))
        dealer: Dealer[Welcome, Finished] = Dealer(crew, num_workers, lambda note: watch(note, crew.welcomes))
        meta = dealer.first_greeting().meta
        writer = TrajectoryWriter(folder, meta, work.fingerprint, len(work.shards), resume)
        summary, started = RolloutSummary(), time.monotonic()
        done = sum(len(work.shards[index]) for index in writer.finished)
        with progress(f"roll out ({num_workers} workers)", len(work), "answers", done=done) as bar:
            for index, (table, spent) in dealer.deal(writer.missing):
                writer.write_table(index, table)
                summary.merge(spent)
                summary.seconds = time.monotonic() - started
                bar.advance(table.num_rows, **paces(summary))
    return summary

"""What a worker is: an engine in a process of its own, and shards to decode. Knows nothing of how it was started."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch.distributed.device_mesh import DeviceMesh

from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.trajectories.rollout import rollout_meta
from t3d.trajectories.schema import TrajectoryMeta, rows_to_table
from t3d.trajectories.work import RolloutSummary, WorkItem, decode
from t3d.types import Decoding

Finished = tuple[pa.Table, RolloutSummary]
"""A shard's checked rows, and what they cost."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The engine that each worker makes itself: the arguments of `Engine.from_pretrained`."""

    model: str
    dtype: str | None = None
    device: str | None = None
    max_batch_size: int | None = None
    backend: str | None = None
    memory_gib: float | None = None

    def build(self, mesh: DeviceMesh | None = None) -> Engine:
        """Load the model, or this process's part of it, as `Engine.from_pretrained` does."""
        return Engine.from_pretrained(
            self.model,
            dtype=self.dtype,
            device=self.device,
            max_batch_size=self.max_batch_size,
            backend=self.backend,
            memory_gib=self.memory_gib,
            mesh=mesh,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What all workers of a rollout are told.

    Attributes:
        spec: of their engines.
        decoding: as `t3d.trajectories.rollout` takes it.
        model_name, form: for the metadata.
        num_threads: of each worker on the CPU.
    """

    spec: EngineSpec
    decoding: Decoding
    model_name: str
    form: PromptConfig | None
    num_threads: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a worker says when it is ready: where it runs, and the metadata of its rows with the model's fingerprint."""

    host: str
    pid: int
    meta: TrajectoryMeta

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Worker:
    """Decodes one shard after another. Its methods are called from afar."""

    def start(self, job: Job, prompt_ids: Sequence[Sequence[int]]) -> Welcome:
        """Load the model and look through all prompts.

        Raises:
            RequestError: no such model, a prompt that cannot be decoded, ...
        """
        torch.set_num_threads(job.num_threads)
        host = socket.gethostname()
        try:
            self._job, self._engine = job, job.spec.build()
            self._engine.check(prompt_ids, job.decoding)
        except RequestError as error:
            raise RequestError(f"{error} (on {host})") from error
        self._meta = rollout_meta(self._engine, job.decoding, job.model_name, job.form)
        return Welcome(host, os.getpid(), self._meta)

    def is_there(self) -> bool:
        """Answer: whatever is called after this one is then under way."""
        return True

    def decode(self, shard: Sequence[WorkItem]) -> Finished:
        """The rows of a shard, as a single process would have made them."""
        summary = RolloutSummary()
        rows = decode(self._engine, shard, self._job.decoding, lambda _, generation: summary.add(generation))
        return rows_to_table(rows, self._meta, f"rows of {shard[0].prompt.prompt_id}"), summary

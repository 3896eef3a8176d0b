"""Decoding in step: what the first process of a replica is asked to decode, all of them decode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from t3d.engine.engine import Backend, Engine
from t3d.engine.request import Request
from t3d.engine.sharded.replica import Replica
from t3d.errors import RequestError, WorkError
from t3d.models import as_device, model_fingerprint
from t3d.models.sharding import hold_own_part
from t3d.types import Generation

MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets, and torch and transformers read."""


class SharedBackend:
    """A backend that decodes with the others of its replica.

    The loop of either backend depends on its requests and on what a step revealed, never on time. The processes get
    the same of both, and so admit, preempt and stop alike; each finished response is compared nonetheless.

    Args:
        backend: of this process's part of the model.
        replica: the processes.
    """

    def __init__(self, backend: Backend, replica: Replica) -> None:
        self.name = backend.name
        self._backend = backend
        self._replica = replica

    def run(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        """Decode requests that share a block size; yields each as it finishes. In the first process."""
        self._replica.tell(requests)
        yield from self._decode(requests)
        self._replica.has_decoded()

    @torch.inference_mode()
    def follow(self) -> None:
        """Decode whatever the first process is asked for, to its end. In the others."""
        while (requests := self._replica.hear()) is not None:
            for _ in self._decode(requests):
                pass

    def _decode(self, requests: list[Request]) -> Iterator[tuple[Request, Generation]]:
        for request, generation in self._backend.run(requests):
            self._replica.require_same(_fingerprint(request, generation))
            yield request, generation


@contextmanager
def shared_engine(
    environment: Mapping[str, str], size: int, device: str | None, build: Callable[[DeviceMesh], Engine]
) -> Iterator[Engine | None]:
    """The engine of a replica in its first process; None in the others, once they have followed that one to its end.

    Args:
        environment: as torchrun made it.
        size: processes of a replica; divides WORLD_SIZE.
        device: "cpu" or "cuda"; None is CUDA where there is one.
        build: makes the engine of a process's part.

    Raises:
        RequestError: as `build`, in all processes where one of them refuses; a GPU by number; processes that were not
            told how to meet.
        WorkError: one of them is gone.
    """
    if device not in (None, "cpu", "cuda"):
        raise RequestError(f"--device {device}: each process has a GPU of its own; say cuda, or leave it out")
    if missing := [name for name in MEETING if name not in environment]:
        raise RequestError(f"{missing[0]} is not set: start the processes by torchrun, which tells them how to meet")
    own_device = as_device(device)
    with losses_told(environment):
        replica = Replica(environment, size, own_device)
        engine = replica.agree(lambda: build(replica.mesh))
        hold_own_part(engine.model, replica.mesh, model_fingerprint(engine.model))
        backend = SharedBackend(engine.backend, replica)
        engine.backend = backend
        if not replica.leads:
            backend.follow()
            replica.leave()
            yield None
            return
        try:
            yield engine
        finally:
            replica.leave()


@contextmanager
def losses_told(environment: Mapping[str, str]) -> Iterator[None]:
    """Say in a line what torch's errors of a broken connection mean."""
    try:
        yield
    except WorkError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise WorkError(
            f"process {environment['RANK']} has lost another one of those that hold the model with it, or cannot reach "
            f"it ({error}); start again with --resume"
        ) from error


def _fingerprint(request: Request, generation: Generation) -> int:
    """An int64 that stands for a request, its tokens, and when each was revealed."""
    numbers = np.array([request.index, *generation.token_ids, *generation.reveal_steps], dtype=np.int64)
    return int.from_bytes(hashlib.blake2b(numbers.tobytes(), digest_size=8).digest(), "big", signed=True)

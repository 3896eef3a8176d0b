"""Workers as Ray actors: one a GPU, or so many CPU cores, on all machines of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

from t3d.errors import RequestError
from t3d.trajectories.work import WorkList
from t3d.trajectories.workers.dealing import Done, Lost, Ready
from t3d.trajectories.workers.worker import Finished, Job, Welcome, Worker

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How long Ray is waited for at a time: Ctrl-C is heard in between."""
_LOCAL = "local"
"""Ray's name for a cluster that is begun on this machine."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where workers run.

    Attributes:
        address: of a Ray cluster: "auto" for the one that this machine belongs to, "local" for a new one of this
            machine alone; None is what RAY_ADDRESS says, else a new one.
        num_workers: None is one a GPU, on machines without any as many as there are CPU cores for.
        cpus_per_worker: where there are no GPUs.
    """

    address: str | None = None
    num_workers: int | None = None
    cpus_per_worker: int = 1


def import_ray(local: bool = False) -> ModuleType:
    """Ray, which is an optional extra.

    Args:
        local: for a cluster of this machine alone. Ray asks nobody who he is, so it must listen on the loopback address
            only: that is what the second variable does on every platform, and `ray.init` has no argument for it.

    Raises:
        RequestError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # both are read when it is imported
    if local:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise RequestError("--workers ray needs Ray: pip install 't3d[ray]'") from error
    return ray


class RayCrew:
    """A `Crew` of Ray actors; a context that ends them, and the cluster too if it began it.

    Args:
        job: what workers are told.
        work: the shards that `give` names.
        cluster: where they run.

    Raises:
        RequestError: no Ray, no cluster at that address, or none that has a worker's resources.
    """

    def __init__(self, job: Job, work: WorkList, cluster: Cluster) -> None:
        address = cluster.address or os.environ.get("RAY_ADDRESS", _LOCAL)
        self._ray = import_ray(local=address == _LOCAL)
        self._job, self._work = job, work
        self._began_cluster = not self._ray.is_initialized()
        if self._began_cluster:
            _connect(self._ray, address)
        try:
            offered = self._ray.cluster_resources()
            resources = _resources_of(offered, job, cluster)
            self.num_workers = cluster.num_workers or max(1, _room_for(offered, resources))
            self._actor_class = self._ray.remote(**resources, max_restarts=0, max_task_retries=0)(Worker)
            self._job_ref, self._prompts_ref = self._ray.put(job), self._ray.put(work.prompt_ids)
        except BaseException:
            self.close()
            raise
        self._actors: list[Any] = []
        self._pending: dict[Any, int] = {}
        self._is_there: dict[int, Any] = {}
        self._has_results = False
        self.welcomes: dict[int, Welcome] = {}

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in range(len(self._actors)):
            self._end(worker)
        self.close()

    def close(self) -> None:
        """Let go of the cluster."""
        if self._began_cluster:
            self._ray.shutdown()

    def hire(self) -> int:
        """As `Crew`."""
        worker, actor = len(self._actors), self._actor_class.remote()
        self._actors.append(actor)
        self._pending[actor.start.remote(self._job_ref, self._prompts_ref)] = worker
        return worker

    def give(self, worker: int, shard: int) -> None:
        """As `Crew`."""
        self._is_there[worker] = self._actors[worker].is_there.remote()
        self._pending[self._actors[worker].decode.remote(self._work.shards[shard])] = worker

    def wait(self, seconds: float | None) -> Ready[Welcome] | Done[Finished] | Lost | None:
        """As `Crew`.

        Raises:
            RequestError: a worker finds the request wrong before any has finished a shard. Later that is the worker's
                fault, a machine that joined without the model, say: it is lost, and the others go on.
        """
        waited = 0.0
        while seconds is None or waited < seconds:
            ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_LOOK_SECONDS)
            if ready:
                return self._happened(ready[0])
            waited += _LOOK_SECONDS
        return None

    def _happened(self, reference: Any) -> Ready[Welcome] | Done[Finished] | Lost:
        worker = self._pending.pop(reference)
        try:
            result = self._ray.get(reference)
            if isinstance(result, Welcome):
                self._welcome(worker, result)
                return Ready(worker, result)
        except (self._ray.exceptions.RayError, RequestError) as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, RequestError) and not self._has_results:
                raise cause from None
            had_begun = self._had_begun(worker)
            self._end(worker)
            where = f"{self.welcomes[worker]}, " if worker in self.welcomes else ""
            return Lost(worker, where + _reason_of(error), had_begun)
        self._has_results = True
        return Done(worker, result)

    def _had_begun(self, worker: int) -> bool:
        """Whether a worker answered after it was given its shard."""
        asked = self._is_there.get(worker)
        if asked is None or not self._ray.wait([asked], timeout=0)[0]:
            return False
        try:
            return bool(self._ray.get(asked))
        except self._ray.exceptions.RayError:
            return False

    def _welcome(self, worker: int, welcome: Welcome) -> None:
        """Take a worker in, unless its rows would not be those of the others."""
        first = next(iter(self.welcomes.values()), welcome)
        old, new = first.meta.to_dict(), welcome.meta.to_dict()
        if differing := [name for name in old if old[name] != new[name]]:
            raise RequestError(
                f"{welcome} has {differing[0]} {new[differing[0]]!r}, {first} has {old[differing[0]]!r}: "
                "give all machines the same model and the same t3d"
            )
        self.welcomes[worker] = welcome

    def _end(self, worker: int) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):  # it is gone already
            self._ray.kill(self._actors[worker])


def _connect(ray: ModuleType, address: str) -> None:
    """Join a cluster, or begin one on this machine, which nobody outside of it can reach."""
    options: dict[str, Any] = {"address": address}
    if address == _LOCAL:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise RequestError(f"--address {address}: no Ray cluster there ({told})") from error


def _resources_of(offered: Mapping[str, float], job: Job, cluster: Cluster) -> dict[str, float]:
    """What one worker takes of what a cluster offers, in Ray's words.

    Raises:
        RequestError: it offers less.
    """
    device = job.spec.device or ""
    are_to_join = device.startswith("cuda") and cluster.num_workers is not None
    if device != "cpu" and (offered.get("GPU", 0) >= 1 or are_to_join):
        return {"num_gpus": 1, "num_cpus": 1}
    if device.startswith("cuda"):
        raise RequestError(
            f"--device {device}: the Ray cluster has no GPU; if machines with GPUs are to join it, give --num-workers"
        )
    if offered.get("CPU", 0) < cluster.cpus_per_worker:
        raise RequestError(
            f"--cpus-per-worker {cluster.cpus_per_worker}: the cluster has {offered.get('CPU', 0):g} cores"
        )
    if not device:
        logger.warning("the Ray cluster has no GPU: workers decode on CPU cores; --device cpu says that this is meant")
    return {"num_cpus": cluster.cpus_per_worker}


def _room_for(offered: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many workers with these resources a cluster has room for."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    return int(min(offered.get(names[name], 0) // amount for name, amount in resources.items()))


def _reason_of(error: Exception) -> str:
    """One line that says why a worker was lost, without Ray's advice."""
    if (cause := getattr(error, "cause", None)) is not None:  # its own exception
        return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    text = " ".join(str(error).split())
    if type(error).__name__ == "ActorUnavailableError":
        return "it cannot be reached: its process, its node or the network is gone"
    known = re.search(r"The actor (?:is dead|died) because ([^.]+)", text)  # its worker process, or its node, has died
    return known[1] if known else text.split(". ")[0][:200]

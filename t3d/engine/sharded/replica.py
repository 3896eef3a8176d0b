"""The processes that hold one model together: a replica.

torchrun's ranks 0 .. N-1 are the first replica, the next N the second. Replicas do not know of each other: each is a
world of its own for torch.distributed, so that whoever is done may leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from t3d.engine.request import Request
from t3d.errors import RequestError, WorkError

STEP_TIMEOUT = timedelta(minutes=10)
"""Within a step; a process that is gone is noticed at once on the same machine, and after this long at the latest."""
WORK_TIMEOUT = timedelta(days=1)
"""Between two pieces of work: the first process may grade, write, or read a large model for long."""

Result = TypeVar("Result")


class Replica:
    """This process among those that hold a model together, of which the first decides what is done.

    Attributes:
        mesh: of the processes.
        leads: whether this is the first of them.
    """

    def __init__(self, environment: Mapping[str, str], size: int, device: torch.device) -> None:
        """Meet the others; all of them must come.

        Args:
            environment: with what torchrun tells: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
            size: processes of a replica; divides WORLD_SIZE.
            device: of this process.
        """
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=STEP_TIMEOUT))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"replica-{rank // size}", store),
            rank=rank % size,
            world_size=size,
            timeout=STEP_TIMEOUT,
            device_id=torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else None,
        )
        self.mesh: DeviceMesh = init_device_mesh(device.type, (size,))
        self.leads = rank % size == 0
        self._size = size
        self._talk = dist.new_group(backend="gloo", timeout=WORK_TIMEOUT)
        self._is_at_work = False

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do the same in every process; what one of them refuses, all refuse in the same words."""
        result, failure = None, None
        try:
            result = work()
        except (RequestError, WorkError) as error:
            failure = error
        failures: list[Exception | None] = [None] * self._size
        dist.all_gather_object(failures, failure, group=self._talk)
        refused = [each for each in failures if each is not None]
        if refused:
            dist.destroy_process_group()
            raise refused[0]
        assert result is not None
        return result

    def tell(self, requests: list[Request]) -> None:
        """Let the others decode these too; only the first process does."""
        self._is_at_work = True
        dist.broadcast_object_list([requests], src=0, group=self._talk)

    def hear(self) -> list[Request] | None:
        """What to decode next, as the first process tells; None at the end."""
        told: list[list[Request] | None] = [None]
        dist.broadcast_object_list(told, src=0, group=self._talk)
        return told[0]

    def has_decoded(self) -> None:
        """What was told is done."""
        self._is_at_work = False

    def require_same(self, fingerprint: int) -> None:
        """Refuse to go on if the processes do not have the same, an int64.

        Raises:
            WorkError: they have not.
        """
        own = torch.tensor([fingerprint])
        found = [torch.empty_like(own) for _ in range(self._size)]
        dist.all_gather(found, own, group=self._talk)
        if any(int(each) != fingerprint for each in found):
            raise WorkError(
                "the processes that hold the model decoded different tokens: is their hardware or software not the "
                "same? Nothing of it is written"
            )

    def leave(self) -> None:
        """Part from the others in peace; the first process sends them home, unless it was stopped amid their work."""
        if self.leads and not self._is_at_work:
            dist.broadcast_object_list([None], src=0, group=self._talk)
        if not self._is_at_work:
            dist.destroy_process_group()

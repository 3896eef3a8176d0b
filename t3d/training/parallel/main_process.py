"""What the main process does for all: the others wait, and hear whether it could."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from t3d.errors import RequestError, WorkError

Given = TypeVar("Given")


def on_main(work: Callable[[], Given], group: dist.ProcessGroup | None = None) -> Given | None:
    """Have the main process do something while the others wait; all must ask.

    Args:
        work: done by the main process alone.
        group: by which all are told; None is the one of all collectives.

    Returns:
        what `work` gives, on the main process; elsewhere None.

    Raises:
        RequestError, WorkError, OSError: as `work` did, in every process.
    """
    given: Given | None = None
    refusal: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            given = work()
        except (RequestError, WorkError, OSError) as error:
            refusal = [error]
    dist.broadcast_object_list(refusal, src=0, group=group)
    if refusal[0] is not None:
        raise refusal[0]
    return given

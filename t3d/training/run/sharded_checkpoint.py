"""Checkpoints of which every process writes its part (torch.distributed.checkpoint), and any number reads them."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from t3d.checksums import checked
from t3d.errors import WorkError
from t3d.training.device import LONGEST_WAIT
from t3d.training.learner import Learner, LearnerState
from t3d.training.parallel.main_process import on_main
from t3d.training.run.checkpoint import SHARDS, Checkpoints

WEIGHTS, REFERENCE, OPTIMIZER = "weights", "reference", "optimizer"


class ShardedCheckpoints(Checkpoints):
    """As `Checkpoints`, of a learner whose state is sharded: every process saves, at the same steps.

    The main process makes the folder, and renames it when all have written.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool = False) -> None:
        super().__init__(folder, keep, asynchronous)
        # of its own: a thread talks to the other processes' threads while training goes on
        self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:  # else another process may still be talking to this one's thread
            dist.destroy_process_group(self._group)  # a run of rounds makes one for every round

    def save(self, step: int, state: LearnerState, progress: Mapping[str, Any] | None = None) -> None:
        """As the base class; all processes must ask, and all hear of what failed in one of them."""
        self.wait()
        if self._thread is None:
            self.write(step, state, progress or {})
            return
        self._on_main(step, lambda: self._make(step))
        writing = dcp.async_save(
            flattened(state), checkpoint_id=self._partial(step) / SHARDS, process_group=self._group
        )
        self._under_way = self._thread.submit(self._finish, step, dict(progress or {}), cast("Future[Any]", writing))

    def write(self, step: int, state: LearnerState, progress: Mapping[str, Any]) -> None:
        """As the base class."""
        self._on_main(step, lambda: self._make(step))
        written: Future[Any] = Future()
        try:
            dcp.save(flattened(state), checkpoint_id=self._partial(step) / SHARDS, process_group=self._group)
            written.set_result(None)
        except CheckpointException as error:
            written.set_exception(error)
        self._finish(step, progress, written)

    def _require_intact(self, path: Path) -> None:
        on_main(lambda: super(ShardedCheckpoints, self)._require_intact(path), self._group)

    def _make(self, step: int) -> None:
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / SHARDS).mkdir(parents=True)

    def _finish(self, step: int, progress: Mapping[str, Any], writing: Future[Any]) -> None:
        """Have the checkpoint appear once every process has written."""
        failure = writing.exception()  # the same in all of them
        if failure is not None:
            self._on_main(step, lambda: shutil.rmtree(self._partial(step), ignore_errors=True))
            raise self._refused(step, _reason(failure)) from failure

        def appear() -> None:
            _require_all_parts(self._partial(step) / SHARDS)
            with checked(self._partial(step)):
                (self._partial(step) / "state.json").write_text(json.dumps({"step": step, "progress": progress}))
            self._appear(step)

        self._on_main(step, appear)

    def _on_main(self, step: int, work: Callable[[], None]) -> None:
        """Have the main process do something for the checkpoint while the others wait; all learn whether it could."""
        try:
            on_main(work, self._group)
        except OSError as error:
            raise self._refused(step, error.strerror or str(error)) from error

    def _refused(self, step: int, reason: str) -> WorkError:
        return WorkError(f"checkpoint {self._final(step)}: {reason}; earlier checkpoints are intact, --resume goes on")


def read_shards(folder: Path, learner: Learner) -> LearnerState:
    """The state that processes wrote together, as this learner holds it: whole, or its parts.

    Weights are read into the learner's own memory at once.

    Raises:
        Exception: torn, or of another model.
    """
    live = learner.state()
    wanted = {f"{WEIGHTS}.{name}": tensor for name, tensor in live.weights.items()}
    wanted |= {f"{REFERENCE}.{name}": tensor for name, tensor in live.reference.items()}
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    own = {key: tensor.shape for key, tensor in wanted.items()}
    sizes = {key: entry.size for key, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    if own != {key: size for key, size in sizes.items() if not key.startswith(OPTIMIZER)}:
        raise ValueError("it belongs to a model of other shapes")
    weights = [weight for group in learner.optimizer.param_groups for weight in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, entry in stored.items():
        if key.startswith(OPTIMIZER) and isinstance(entry, TensorStorageMetadata):
            _, index, name = key.split(".")
            wanted[key] = _room_for(entry, weights[int(index)])
            moments.setdefault(int(index), {})[name] = wanted[key]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(wanted, checkpoint_id=folder, no_dist=not _is_sharded(live))
    except CheckpointException as error:  # no Exception of Python's
        raise ValueError(_reason(error)) from error
    return LearnerState(live.weights, live.reference, {**live.optimizer, "state": moments})


def flattened(state: LearnerState) -> dict[str, Tensor]:
    """A learner's tensors under one name each: `weights.<name>`, `reference.<name>`, `optimizer.<index>.<moment>`."""
    tensors = {f"{WEIGHTS}.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"{REFERENCE}.{name}": tensor for name, tensor in state.reference.items()}
    for index, moments in state.optimizer["state"].items():
        tensors |= {f"{OPTIMIZER}.{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _room_for(entry: TensorStorageMetadata, weight: Tensor) -> Tensor:
    """Memory for one of a weight's moments, dealt out as the weight is; or for a count of steps."""
    dtype = entry.properties.dtype
    same = entry.size == weight.shape
    return torch.empty_like(weight.detach(), dtype=dtype) if same else torch.empty(entry.size, dtype=dtype)


def _require_all_parts(shards: Path) -> None:
    """Refuse a checkpoint of which other processes wrote their parts to where this one cannot read them.

    Raises:
        OSError: they did.
    """
    written = dcp.FileSystemReader(shards).read_metadata().storage_data.values()
    missing = sorted({info.relative_path for info in written if not (shards / info.relative_path).exists()})
    if missing:
        raise FileNotFoundError(
            errno.ENOENT, f"{missing[0]} of another process is not here: out must be on a disk that all machines share"
        )


def _is_sharded(state: LearnerState) -> bool:
    return any(isinstance(weight, DTensor) for weight in state.weights.values())


def _reason(error: BaseException) -> str:
    """What went wrong, in the first of the processes in which something did."""
    if isinstance(error, CheckpointException):
        error, _ = next(iter(error.failures.values()))
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:160]

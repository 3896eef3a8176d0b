"""What a run needs to go on exactly where it stopped, written so that a kill never leaves a half-written one.

A checkpoint is a folder `step-000120` that appears by atomic rename: the model's weights, optimizer, reference, the
step, and the run's own bookkeeping, with checksums of all of these. Noise and data order are functions of the step, so
no random state is stored.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from t3d.checksums import checked, damage_of_folder
from t3d.errors import RequestError, WorkError
from t3d.training.learner import Learner, LearnerState

logger = logging.getLogger(__name__)

PREFIX, PARTIAL = "step-", ".partial"
SHARDS = "shards"
"""Where processes that hold parts have written these, in place of the files of one that holds all."""


class Checkpoints:
    """The checkpoint folder of one run; keeps the newest `keep`.

    With `asynchronous`, `save` returns as soon as the state is copied to the host's memory, and a thread writes it. As
    a context manager it ends when the last checkpoint is written, whatever else went wrong.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool = False) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except WorkError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)  # what stopped the run is the news

    def newest(self) -> Path | None:
        """The last complete checkpoint, or None."""
        found = self._complete()
        return found[-1] if found else None

    def save(self, step: int, state: LearnerState, progress: Mapping[str, Any] | None = None) -> None:
        """Write the state after optimizer step `step` (1-based); the state may change as soon as this returns.

        Args:
            step: finished steps.
            state: of the learner.
            progress: what else the run must remember, as JSON.

        Raises:
            WorkError: the disk refuses this one, or refused the one before; earlier checkpoints stay.
        """
        self.wait()
        if self._thread is None:
            self.write(step, state, progress or {})
        else:
            self._under_way = self._thread.submit(self.write, step, on_host(state), dict(progress or {}))

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
            WorkError: the disk refused it.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def write(self, step: int, state: LearnerState, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint here and now; as `save` otherwise."""
        final, partial = self._final(step), self._partial(step)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            with checked(partial):
                save_file(_plain(state.weights), partial / "model.safetensors")
                torch.save(state.optimizer, partial / "optimizer.pt")
                if state.reference:
                    save_file(_plain(state.reference), partial / "reference.safetensors")
                (partial / "state.json").write_text(json.dumps({"step": step, "progress": progress}))
            self._appear(step)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
            shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
            raise WorkError(
                f"checkpoint {final}: {reason}; earlier checkpoints are intact, --resume goes on"
            ) from error

    def load(self, path: Path, learner: Learner) -> tuple[int, dict[str, Any]]:
        """Restore the learner in place; returns the step after which it was saved, and the run's `progress`.

        Raises:
            RequestError: torn, or of another model.
        """
        try:
            self._require_intact(path)
            stored = json.loads((path / "state.json").read_text())
            step, progress = int(stored["step"]), dict(stored.get("progress", {}))
            learner.load(self._read(path, learner))
        except Exception as error:  # a torn file surfaces as whatever its reader raises
            reason = " ".join(str(error).split())[:160]
            raise RequestError(
                f"checkpoint {path}: cannot be used: {reason}; remove it to go on from an earlier one"
            ) from error
        return step, progress

    def _read(self, path: Path, learner: Learner) -> LearnerState:
        """The state that one process or several have written; where the learner is sharded, all processes must ask."""
        if (path / SHARDS).exists():
            from t3d.training.run.sharded_checkpoint import read_shards  # here: it is built on this module

            return read_shards(path / SHARDS, learner)
        reference = path / "reference.safetensors"
        return LearnerState(
            weights=load_file(path / "model.safetensors"),
            reference=load_file(reference) if reference.exists() else {},
            optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
        )

    def _require_intact(self, path: Path) -> None:
        """Raises:
        RequestError: a file of the checkpoint is not as it was written.
        """
        if damage := damage_of_folder(path):
            raise RequestError(damage)

    def _final(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:06d}"

    def _partial(self, step: int) -> Path:
        return self._final(step).with_suffix(PARTIAL)

    def _appear(self, step: int) -> None:
        """The partial folder becomes the checkpoint, and older ones go."""
        final = self._final(step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(self._partial(step), final)
        for old in (*self._complete()[: -self._keep], *self._folder.glob(f"{PREFIX}*{PARTIAL}")):
            shutil.rmtree(old, ignore_errors=True)

    def _complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [path for path in self._folder.glob(PREFIX + "*") if path.suffix != PARTIAL]
        return sorted(found, key=lambda path: (len(path.name), path.name))


def on_host(state: LearnerState) -> LearnerState:
    """A copy in the host's memory that shares none with the state.

    Copies from a CUDA device go to pinned memory and run behind the program; it waits once, for all of them.
    """
    copied = LearnerState(_copied(state.weights), _copied(state.reference), _copied(state.optimizer))
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copied(value: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor copied."""
    if isinstance(value, Tensor):
        return _copied_tensor(value)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value


def _copied_tensor(tensor: Tensor) -> Tensor:
    if is_traceable_wrapper_subclass(tensor):  # an 8-bit optimizer's moments: plain tensors behind the face of one
        inner, context = tensor.__tensor_flatten__()
        parts = {name: _copied_tensor(getattr(tensor, name)) for name in inner}
        return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
    return host.copy_(tensor.detach(), non_blocking=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}

"""The frozen model beside the student: a snapshot of it, taken at the start, for DDO again every so many steps.

Its forms differ in where the snapshot lies; they judge alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from t3d.config import Recipe
from t3d.training.computing import PLAIN, Computing
from t3d.training.copying import copy_into, copy_model
from t3d.training.parallel.processes import Processes, Shards
from t3d.training.precision import compute_dtype
from t3d.training.scorer import Scorer
from t3d.training.student import ShardedStudent, Student


class Reference(ABC):
    """Starts as the student is when it is made; `refresh` takes the student's weights of that moment."""

    @abstractmethod
    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """The frozen model, ready on the device; the student must not be used inside."""

    @abstractmethod
    def refresh(self) -> None:
        """Take over the student's weights."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it, by name: its own of every weight that the student trains."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint held.

        Raises:
            ValueError: other names or shapes.
        """


class CopyReference(Reference):
    """A second model on the device.

    Args:
        student: whose snapshot it is.
        held_in: dtype of its matrices; None holds every weight as the student does.
        computing: how it runs.

    Vectors (norm weights) stay as they are: products round matrices to the dtype that they compute in, so that the copy
    gives the same numbers as the student, and vectors are used unrounded.
    """

    def __init__(self, student: Student, held_in: torch.dtype | None = None, computing: Computing = PLAIN) -> None:
        self._student, self._device = student, student.model.device
        self.model = copy_model(student.model, self._converter(held_in)).requires_grad_(False)
        self._scorer = Scorer(self.model, computing)

    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """It is always there."""
        yield self._scorer

    def refresh(self) -> None:
        """Copy what the student trains, rounded to what this copy is held in."""
        copy_into(self._trained(), self._student.trainable())

    def tensors(self) -> dict[str, Tensor]:
        """As the base class, tied weights once."""
        return {name: weight.detach() for name, weight in self._trained().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As the base class."""
        copy_into(self._trained(), tensors)

    def _trained(self) -> dict[str, nn.Parameter]:
        own = dict(self.model.named_parameters())
        return {name: own[name] for name in self._student.trainable()}

    def _converter(self, held_in: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        """What makes a weight of the copy from one of the student's."""
        return _matrices_in(held_in)


class OffloadReference(CopyReference):
    """A second model that waits in the host's memory and is on the device only while it is awake.

    Waking it costs one transfer of its weights, once an optimizer step. The parameters stay the same objects, so that
    what was compiled for them stays valid.
    """

    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """On the device until the end of the context."""
        waiting = {weight: weight.data for weight in self.model.parameters()}
        try:
            for weight, on_host in waiting.items():
                weight.data = torch.empty_like(on_host, device=self._device).copy_(on_host, non_blocking=True)
            yield self._scorer
        finally:
            for weight, on_host in waiting.items():
                weight.data = on_host

    def _converter(self, held_in: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        is_cuda = self._device.type == "cuda"

        def to_host(weight: Tensor) -> Tensor:
            dtype = held_in if held_in is not None and weight.dim() > 1 else weight.dtype
            # pinned: such memory is copied at the full speed of the bus
            return torch.empty(weight.shape, dtype=dtype, device="cpu", pin_memory=is_cuda).copy_(weight)

        return to_host


class ShardedReference(Reference):
    """A second model, dealt out over all processes as the student is: each copies its own part.

    Args:
        student: dealt out already.
        shards: that deal out.
        held_in: dtype of its matrices, as in `CopyReference`.
        computing: how it runs.
        offload: each part waits in the host's memory until its layer runs.
    """

    def __init__(
        self, student: ShardedStudent, shards: Shards, held_in: torch.dtype, computing: Computing, offload: bool
    ) -> None:
        self._student = student
        self.model = copy_model(student.shell, _matrices_in(held_in)).requires_grad_(False)
        self._scorer = Scorer(self.model, computing)
        shards.hold(self._scorer, offload)
        self.refresh()

    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """Layers are gathered as they run; embedding and head stay so until the reference is replaced."""
        yield self._scorer

    def refresh(self) -> None:
        """As the base class; no process asks another for anything."""
        copy_into(self.tensors(), self._student.trainable())

    def tensors(self) -> dict[str, Tensor]:
        """As the base class: the parts of this process, never gathered ones."""
        self._scorer.reshard()  # type: ignore[operator]
        own = dict(self.model.named_parameters())
        return {name: own[name].detach() for name in self._student.trainable()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As the base class."""
        copy_into(self.tensors(), tensors)


class AdapterReference(Reference):
    """A snapshot of the adapters alone: while it is awake, their values stand in the student's model.

    Nothing else is held twice, and the model's parameters stay in the same memory, so that what was compiled for them
    stays valid.
    """

    def __init__(self, student: Student, computing: Computing = PLAIN) -> None:
        self._student = student
        self._snapshot = {name: weight.detach().clone() for name, weight in student.trainable().items()}
        self._scorer = Scorer(student.model, computing)

    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """The student's model in eval mode, with the snapshot's adapters; afterwards it is as it was."""
        trained, training = self._student.trainable(), [part for part in self._student.model.modules() if part.training]
        learned = {name: weight.detach().clone() for name, weight in trained.items()}
        try:
            self._student.model.eval()
            copy_into(trained, self._snapshot)
            with torch.no_grad():
                yield self._scorer
        finally:
            copy_into(trained, learned)
            for part in training:
                part.training = True

    def refresh(self) -> None:
        """As the base class."""
        copy_into(self._snapshot, self._student.trainable())

    def tensors(self) -> dict[str, Tensor]:
        """As the base class."""
        return self._snapshot

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As the base class."""
        copy_into(self._snapshot, tensors)


def _matrices_in(dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Copies a weight, a matrix into this dtype."""
    return lambda weight: weight.to(dtype=dtype if weight.dim() > 1 else None, copy=True)


def reference_form(recipe: Recipe) -> str:
    """The form that the recipe asks for, or that fits what is trained."""
    return recipe.reference.form or ("copy" if recipe.model.adapter is None else "adapter")


def build_reference(
    student: Student, recipe: Recipe, computing: Computing = PLAIN, processes: Processes | None = None
) -> Reference:
    """The reference in the form that the recipe asks for, or that fits what is trained; dealt out if the student is."""
    form = reference_form(recipe)
    if isinstance(student, ShardedStudent):
        assert isinstance(processes, Shards)
        return ShardedReference(student, processes, compute_dtype(recipe), computing, offload=form == "offload")
    if form == "adapter":
        return AdapterReference(student, computing)
    # a model that adapters stand beside is already held in what it computes in
    held_in = None if recipe.model.adapter is not None else compute_dtype(recipe)
    return {"copy": CopyReference, "offload": OffloadReference}[form](student, held_in, computing)

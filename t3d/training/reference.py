"""The frozen model inside DDO: a snapshot of the student, taken every so many optimizer steps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from t3d.models import SDARForCausalLM
from t3d.training.scorer import Scorer
from t3d.training.student import Student


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
        """What a checkpoint must hold of it, by name."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint held.

        Raises:
            ValueError: other names or shapes.
        """


class CopyReference(Reference):
    """A second model on the device."""

    def __init__(self, student: Student, held_in: torch.dtype) -> None:
        self._student = student
        self.model = frozen_copy(student.model, held_in)
        self._scorer = Scorer(self.model)

    @contextmanager
    def awake(self) -> Iterator[Scorer]:
        """It is always there."""
        yield self._scorer

    def refresh(self) -> None:
        """Copy the student's weights, rounded to what this copy is held in."""
        copy_into(dict(self.model.named_parameters()), dict(self._student.model.named_parameters()))

    def tensors(self) -> dict[str, Tensor]:
        """Every weight, tied ones once."""
        return {name: weight.detach() for name, weight in self.model.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As the base class."""
        copy_into(dict(self.model.named_parameters()), tensors)


def frozen_copy(model: SDARForCausalLM, held_in: torch.dtype) -> SDARForCausalLM:
    """A copy in eval mode without gradients, its matrices in `held_in`.

    Vectors (norm weights) stay as they are: products round matrices to the dtype that they compute in, so that the copy
    gives the same numbers as the student, and vectors are used unrounded.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for weight in frozen.parameters():
        if weight.dim() > 1:
            weight.data = weight.data.to(held_in)
    return frozen


@torch.no_grad()
def copy_into(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Overwrite tensors by those of the same names.

    Raises:
        ValueError: other names or shapes.
    """
    if {name: tensor.shape for name, tensor in other.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError("it belongs to a model of other shapes")
    for name, tensor in other.items():
        own[name].copy_(tensor)

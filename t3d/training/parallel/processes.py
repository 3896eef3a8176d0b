"""The processes of a run: how they hold a model, exchange gradients, and measure these.

torch's own `fully_shard` under accelerate's process group: accelerate's FSDP plugin takes student and optimizer in its
own order, and knows nothing of a second model that follows the first part by part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from t3d.config import Recipe
from t3d.training.parallel.strategy import is_sharded, num_shards
from t3d.training.parallel.tensors import whole
from t3d.training.precision import compute_dtype
from t3d.training.scorer import Scorer


class Processes(ABC):
    """How the processes of a run hold what they train.

    Attributes:
        sharded: whether each holds a part only.
    """

    sharded: bool

    @abstractmethod
    def hold(self, scorer: Scorer) -> nn.Module:
        """What runs the student's forward passes, of which every process runs as many."""

    @abstractmethod
    def backward(self, student: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one batch of a step; `last` says that gradients are then exchanged."""

    def clip(self, weights: Iterable[Tensor], norm: float) -> Tensor:
        """Scale gradients to a norm of at most `norm`; returns the norm that they had, over all parts."""
        return whole(torch.nn.utils.clip_grad_norm_(list(weights), norm))

    def rest(self, scorer: Scorer) -> None:  # noqa: B027 - what holds everything has nothing to let go
        """After forward passes that no backward follows: let go of what was gathered for them."""

    @abstractmethod
    def scratch_bytes(self, model: nn.Module) -> int:
        """What a step will take for a while on the device beside what one process alone would take."""


class Replicas(Processes):
    """Each process holds everything, and gradients are averaged (DDP); one alone has nobody to ask."""

    sharded = False

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def hold(self, scorer: Scorer) -> nn.Module:
        """As the base class."""
        held: nn.Module = self._accelerator.prepare_model(scorer)
        return held

    @contextmanager
    def backward(self, student: nn.Module, last: bool) -> Iterator[None]:
        """As the base class."""
        if last:
            yield
            return
        with self._accelerator.no_sync(student):
            yield

    def scratch_bytes(self, model: nn.Module) -> int:
        """As the base class; DDP's buckets are there from the start."""
        return 0


class Shards(Processes):
    """Every weight is dealt out over all processes (FSDP2): one unit a decoder layer, and one of all else.

    Or over groups of them, of which each holds all (the recipe's `distributed.shards`).

    A unit is gathered when its forward or backward runs. Layers are gathered in what products are computed in;
    embedding, last norm and LM head as they are held, since the head sums its gradient over chunks in float32.

    Args:
        accelerator: of the run.
        recipe: its precision and `distributed` are filled in.
    """

    sharded = True

    def __init__(self, accelerator: Accelerator, recipe: Recipe) -> None:
        self._device = accelerator.device
        self._mesh = _mesh_of(accelerator, num_shards(recipe, accelerator.num_processes))
        self._keeps_whole_gradients = recipe.distributed.gradients == "whole"
        dtype = compute_dtype(recipe)
        self._layers_as = MixedPrecisionPolicy(
            param_dtype=dtype if dtype == torch.bfloat16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # the residual stream comes as it is; rotary angles stay in float32
        )

    def hold(self, scorer: Scorer, offload: bool = False) -> nn.Module:
        """As the base class, in place; each process has its part of the weights then, which hold nothing yet.

        Args:
            scorer: of the student, or of a frozen model, without weights (on the meta device).
            offload: keep this process's part in the host's memory while it is not gathered.
        """
        policy = CPUOffloadPolicy() if offload and self._device.type == "cuda" else OffloadPolicy()
        for layer in scorer.model.model.layers:
            fully_shard(layer, mesh=self._mesh, mp_policy=self._layers_as, offload_policy=policy)
        rest_as = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        # gathered until the backward has passed: the head is needed at both ends of it, and the embedding may be tied
        fully_shard(scorer, mesh=self._mesh, mp_policy=rest_as, offload_policy=policy, reshard_after_forward=False)
        for name in ("hidden_states", "run_layer"):
            register_fsdp_forward_method(scorer, name)
        _make_room(scorer, torch.device("cpu") if isinstance(policy, CPUOffloadPolicy) else self._device)
        return scorer

    @contextmanager
    def backward(self, student: nn.Module, last: bool) -> Iterator[None]:
        """As the base class; gradients are kept whole until the last batch, or exchanged after each."""
        assert isinstance(student, FSDPModule)
        student.set_requires_gradient_sync(last or not self._keeps_whole_gradients)
        yield

    def rest(self, scorer: Scorer) -> None:
        """As the base class."""
        assert isinstance(scorer, FSDPModule)
        scorer.reshard()

    def scratch_bytes(self, model: nn.Module) -> int:
        """Three gathered layers, their gradients on the way, and whole gradients where these are kept."""
        layers = list(model.model.layers)  # type: ignore[union-attr, arg-type]
        largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
        width = (self._layers_as.param_dtype or torch.float32).itemsize
        kept = sum(weight.numel() for weight in model.parameters()) if self._keeps_whole_gradients else 0
        return gathered_bytes(largest, width, kept)


def _mesh_of(accelerator: Accelerator, shards: int) -> DeviceMesh:
    """All processes in a row; or a row for each group of `shards` neighbours, which machines of that many GPUs are."""
    device_type, count = accelerator.device.type, accelerator.num_processes
    if shards == count:
        return init_device_mesh(device_type, (count,))
    return init_device_mesh(device_type, (count // shards, shards), mesh_dim_names=("replicas", "shards"))


def _make_room(module: nn.Module, device: torch.device) -> None:
    """Give weights that are mere shapes memory on a device, unwritten; buffers stay what and where they are."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    module.to_empty(device=device)
    for name, buffer in buffers.items():
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, buffer)


def gathered_bytes(layer_weights: int, width: int, whole_gradients: int) -> int:
    """What sharing takes for a while: three gathered layers, two layers' gradients, and gradients that are kept whole.

    Args:
        layer_weights: of the largest layer.
        width: bytes of a gathered weight.
        whole_gradients: weights whose float32 gradients are kept whole.
    """
    return 3 * layer_weights * width + 2 * layer_weights * 4 + 4 * whole_gradients


def processes_of(recipe: Recipe, accelerator: Accelerator) -> Processes:
    """How the processes of a run share it; the recipe's `distributed` is filled in."""
    return Shards(accelerator, recipe) if is_sharded(recipe, accelerator.num_processes) else Replicas(accelerator)

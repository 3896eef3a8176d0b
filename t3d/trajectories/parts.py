"""Which shards of a rollout a process does, when several do it side by side: as `--shard` and torchrun's ranks say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from t3d.errors import RequestError


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` (from 0) of `count` equal parts of a rollout: every `count`-th shard from shard `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise RequestError(f"part {self} does not exist: parts are numbered from 0, 0/{self.count} being the first")

    def __str__(self) -> str:
        """As `--shard` takes it."""
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that "3/8" names; raises `RequestError` if it names none."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise RequestError(f"--shard {text!r}: write i/n with i from 0, for example 0/8 for the first of eight")
        return cls(int(match[1]), int(match[2]))

    def split(self, inner: Part) -> Part:
        """Part `inner` of this part, as a part of the whole: of 1/4 in two halves the second is 5/8."""
        return Part(self.index + self.count * inner.index, self.count * inner.count)

    def of(self, num_shards: int) -> range:
        """The numbers of its shards among 0 .. num_shards - 1."""
        return range(self.index, num_shards, self.count)


WHOLE = Part()


def rank_of(environment: Mapping[str, str], each: int = 1) -> Part:
    """This process among those that torchrun or `accelerate launch` started; the whole where neither did.

    Args:
        environment: with RANK and WORLD_SIZE, if they did.
        each: so many processes in a row hold one model and are one part together.

    Raises:
        RequestError: their number is no multiple of `each`.
    """
    rank, count = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    if count % each:
        raise RequestError(
            f"--tensor-parallel {each} takes {each} processes a model, and there are {count}: start it by torchrun "
            f"--nproc-per-node {each}, or a multiple"
        )
    return Part(rank // each, count // each)


def use_own_gpu(environment: Mapping[str, str], device: str | None) -> None:
    """Make the GPU that LOCAL_RANK names the one that "cuda" means in this process, unless it is to use the CPU.

    Raises:
        RequestError: the machine has fewer GPUs than processes.
    """
    import torch

    if device == "cpu":
        return
    number, num_gpus = int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if num_gpus and number >= num_gpus:
        raise RequestError(f"LOCAL_RANK is {number}, and there are {num_gpus} GPUs: start one process a GPU")
    if num_gpus and number:
        torch.cuda.set_device(number)

"""Facts of GPUs, from their vendors' data sheets, and of the clusters that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from t3d.errors import RequestError
from t3d.training.throughput import BF16_PEAKS


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: on the command line.
        peak_flops: FLOP/s of dense bf16 products that are summed in float32.
        bytes_per_second: to and from its memory.
        memory_bytes: as its driver counts them, ECC taken off.
        link_bytes_per_second: to the other GPUs of its machine, one way: half of what NVLink is sold as; else PCIe's.
        bus_bytes_per_second: to the host's memory, one way.
        device_name: by its driver; other parts of the same family (PCIe, NVL, laptops) are other GPUs.
        source: the data sheet.
    """

    name: str
    peak_flops: float
    bytes_per_second: float
    memory_bytes: int
    link_bytes_per_second: float
    bus_bytes_per_second: float
    device_name: str
    source: str


GEN4, GEN5 = 32e9, 64e9
"""Bytes a second one way over sixteen lanes of PCI Express."""
MIB = 2**20

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", BF16_PEAKS["H200"], 4.8e12, 143_771 * MIB, 450e9, GEN5, "H200", "NVIDIA H200 Tensor Core GPU, SXM"),
        Gpu("h100", BF16_PEAKS["H100"], 3.35e12, 81_559 * MIB, 450e9, GEN5, "H100 80GB HBM3", "NVIDIA H100, SXM 80 GB"),
        Gpu("a100-80gb", BF16_PEAKS["A100"], 2.039e12, 81_920 * MIB, 300e9, GEN4, "A100-SXM4-80GB", "NVIDIA A100, SXM"),
        Gpu("a100-40gb", BF16_PEAKS["A100"], 1.555e12, 40_960 * MIB, 300e9, GEN4, "A100-SXM4-40GB", "NVIDIA A100, SXM"),
        Gpu("l40s", BF16_PEAKS["L40S"], 0.864e12, 46_068 * MIB, GEN4, GEN4, "L40S", "NVIDIA L40S"),
        Gpu(
            "rtx-4090",
            BF16_PEAKS["RTX 4090"],
            1.008e12,
            24_564 * MIB,
            GEN4,
            GEN4,
            "GeForce RTX 4090",
            "NVIDIA Ada GPU Architecture",
        ),
        Gpu(
            "rtx-3090",
            BF16_PEAKS["RTX 3090"],
            0.936e12,
            24_576 * MIB,
            GEN4,
            GEN4,
            "GeForce RTX 3090",
            "NVIDIA Ampere GA102",
        ),
    )
}
"""Name on the command line -> its facts. memory_bytes is the total that nvidia-smi shows, which data sheets round."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines of GPUs of one kind, one process a GPU.

    Attributes:
        gpu: of which all are.
        gpus_per_node: of each machine.
        nodes: machines.
        network_bytes_per_second: of each GPU to other machines, one way.
    """

    gpu: Gpu
    gpus_per_node: int = 1
    nodes: int = 1
    network_bytes_per_second: float = 50e9

    @property
    def num_gpus(self) -> int:
        """Of all machines."""
        return self.gpus_per_node * self.nodes

    def link_of(self, group_size: int, neighbours: int = 1) -> float:
        """Bytes a second at which each GPU passes on a ring's bytes, one way, all groups exchanging at once.

        A ring that leaves a machine does so over the network adapters of all its members there, each of which carries a
        share (NCCL's parallel rings, and what nccl-tests call bus bandwidth): GPUs of a machine add up.

        Args:
            group_size: GPUs that exchange.
            neighbours: distance from one to the next: 1, or the size of the groups that each hold everything.
        """
        if group_size * neighbours <= self.gpus_per_node:
            return self.gpu.link_bytes_per_second
        members = min(group_size, max(1, self.gpus_per_node // neighbours))
        return min(self.gpu.link_bytes_per_second, members * self.network_bytes_per_second)


def find_gpu(name: str) -> Gpu:
    """The GPU of a name.

    Raises:
        RequestError: its facts are not known.
    """
    if name not in GPUS:
        raise RequestError(f"--gpu {name}: is unknown: use one of {', '.join(GPUS)}")
    return GPUS[name]


def gpu_called(device_name: str) -> Gpu | None:
    """The GPU of a driver's name, such as "NVIDIA A100-SXM4-80GB"; None: its facts are not known."""
    return next((gpu for gpu in GPUS.values() if device_name == f"NVIDIA {gpu.device_name}"), None)

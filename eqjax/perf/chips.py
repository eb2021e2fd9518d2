"""Peak figures of accelerators, for the utilization of a run and for the cost model of `eqjax plan`.

Figures are the vendors', dense (without sparsity), per device as JAX counts devices.
"""

import dataclasses
import re
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class CudaTarget:
    """What the GPU compiler has to know of a chip; "core" is a streaming multiprocessor.

    Attributes:
      device_name: the driver's name of the device.
      compute_capability: (major, minor).
      cores: number of cores.
      clock_ghz: boost clock.
      l2_cache: bytes.
      shared_memory_per_core: bytes.
      threads_per_core: threads that a core holds.
      float32_units: units for float32 arithmetic in a core.
    """

    device_name: str
    compute_capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_cache: int
    shared_memory_per_core: int
    threads_per_core: int
    float32_units: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
      name: short name.
      platform: JAX's name of the backend.
      device_kinds: prefixes of `device.device_kind`.
      peak_flops: FLOP/s of bfloat16 matrix products.
      memory: bytes.
      memory_bandwidth: bytes/s.
      node_size: devices joined by fast links (a GPU node, or a whole TPU slice).
      link_bandwidth: bytes/s that a device sends inside a node.
      network_bandwidth: bytes/s that a device sends to other nodes.
      source: where the figures come from.
      cuda: what the GPU compiler has to know; None: it is not a CUDA GPU.
    """

    name: str
    platform: Literal["gpu", "tpu"]
    device_kinds: tuple[str, ...]
    peak_flops: float
    memory: float
    memory_bandwidth: float
    node_size: int
    link_bandwidth: float
    network_bandwidth: float
    source: str
    cuda: CudaTarget | None = None

    def float32_slowdown(self, precision: str) -> float:
        """Returns the time of a product of float32 numbers over that of a bfloat16 one, at the peaks.

        At "highest" GPUs leave their tensor cores idle, and TPUs take six passes of bfloat16; "tf32" is half the rate
        of GPUs, and three passes; "bfloat16" is one pass on TPUs, and the same as TF32 on GPUs.

        Args:
          precision: see `eqjax.precision.computing_in`.

        Example:
          >>> [round(CHIPS[name].float32_slowdown("highest"), 1) for name in ("A100", "RTX4090", "v5p")]
          [16.0, 2.0, 6.0]
        """
        if self.platform == "tpu":
            return {"highest": 6.0, "tf32": 3.0, "bfloat16": 1.0}[precision]
        if precision == "highest" and self.cuda is not None:
            # Two FLOPs per unit and clock: a product, and a sum.
            return self.peak_flops / (2 * self.cuda.cores * self.cuda.float32_units * self.cuda.clock_ghz * 1e9)
        return 2.0


# Network figures are those of cloud offers: 8 adapters of 400 Gbit/s per node of 8 GPUs, one per GPU (200 Gbit/s
# for A100), and 25 GB/s per TPU host of 4 chips. Other clusters may have less. For RTX 4090 and L4: one adapter of
# 100 Gbit/s per machine of 8. Compiler targets have the values that XLA records for the same or, for the cards of
# capability 8.9, the nearest chips, with cores, clock and cache of the data sheets.
_TABLE = (
    Chip(
        name="H100", platform="gpu", device_kinds=("NVIDIA H100",), peak_flops=989e12,
        memory=80e9, memory_bandwidth=3.35e12, node_size=8, link_bandwidth=450e9, network_bandwidth=50e9,
        source="NVIDIA H100 data sheet, SXM column: 1979 TFLOPS with sparsity, NVLink 900 GB/s both ways",
        cuda=CudaTarget(
            device_name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0), cores=132, clock_ghz=1.98,
            l2_cache=50 * 2**20, shared_memory_per_core=228 * 2**10, threads_per_core=2048, float32_units=128,
        ),
    ),
    Chip(
        name="H200", platform="gpu", device_kinds=("NVIDIA H200",), peak_flops=989e12,
        memory=141e9, memory_bandwidth=4.8e12, node_size=8, link_bandwidth=450e9, network_bandwidth=50e9,
        source="NVIDIA H200 data sheet, SXM column",
        cuda=CudaTarget(
            device_name="NVIDIA H200", compute_capability=(9, 0), cores=132, clock_ghz=1.98,
            l2_cache=50 * 2**20, shared_memory_per_core=228 * 2**10, threads_per_core=2048, float32_units=128,
        ),
    ),
    Chip(
        name="A100", platform="gpu", device_kinds=("NVIDIA A100",), peak_flops=312e12,
        memory=80e9, memory_bandwidth=2.04e12, node_size=8, link_bandwidth=300e9, network_bandwidth=25e9,
        source="NVIDIA A100 80GB data sheet, SXM column: NVLink 600 GB/s both ways",
        cuda=CudaTarget(
            device_name="NVIDIA A100-SXM4-80GB", compute_capability=(8, 0), cores=108, clock_ghz=1.41,
            l2_cache=40 * 2**20, shared_memory_per_core=164 * 2**10, threads_per_core=2048, float32_units=64,
        ),
    ),
    Chip(
        name="RTX4090", platform="gpu", device_kinds=("NVIDIA GeForce RTX 4090",), peak_flops=165.2e12,
        memory=24e9, memory_bandwidth=1.008e12, node_size=8, link_bandwidth=32e9, network_bandwidth=1.6e9,
        source="NVIDIA Ada architecture paper, sums in float32; no NVLink, PCIe 4.0 x16 is 64 GB/s both ways",
        cuda=CudaTarget(
            device_name="NVIDIA GeForce RTX 4090", compute_capability=(8, 9), cores=128, clock_ghz=2.52,
            l2_cache=72 * 2**20, shared_memory_per_core=100 * 2**10, threads_per_core=1536, float32_units=128,
        ),
    ),
    Chip(
        name="L4", platform="gpu", device_kinds=("NVIDIA L4",), peak_flops=121e12,
        memory=24e9, memory_bandwidth=0.3e12, node_size=8, link_bandwidth=32e9, network_bandwidth=1.6e9,
        source="NVIDIA L4 data sheet: 242 TFLOPS with sparsity, 300 GB/s, PCIe 4.0 x16 64 GB/s both ways",
        cuda=CudaTarget(
            device_name="NVIDIA L4", compute_capability=(8, 9), cores=58, clock_ghz=2.04,
            l2_cache=48 * 2**20, shared_memory_per_core=100 * 2**10, threads_per_core=1536, float32_units=128,
        ),
    ),
    Chip(
        name="v4", platform="tpu", device_kinds=("TPU v4",), peak_flops=275e12,
        memory=32e9, memory_bandwidth=1.2e12, node_size=4096, link_bandwidth=150e9, network_bandwidth=6.25e9,
        source="Google Cloud documentation, v4: 275 TFLOPS, 32 GiB, 1200 GB/s; 6 links of 50 GB/s, both ways",
    ),
    Chip(
        name="v5e", platform="tpu", device_kinds=("TPU v5 lite", "TPU v5e"), peak_flops=197e12,
        memory=16e9, memory_bandwidth=0.819e12, node_size=256, link_bandwidth=100e9, network_bandwidth=6.25e9,
        source="Google Cloud documentation, v5e: 197 TFLOPS, 16 GB, 819 GB/s, 1600 Gbit/s between chips, both ways",
    ),
    Chip(
        name="v5p", platform="tpu", device_kinds=("TPU v5", "TPU v5p"), peak_flops=459e12,
        memory=95e9, memory_bandwidth=2.765e12, node_size=8960, link_bandwidth=300e9, network_bandwidth=6.25e9,
        source="Google Cloud documentation, v5p: 459 TFLOPS, 95 GB, 2765 GB/s, 4800 Gbit/s between chips, both ways",
    ),
    Chip(
        name="v6e", platform="tpu", device_kinds=("TPU v6 lite", "TPU v6e"), peak_flops=918e12,
        memory=32e9, memory_bandwidth=1.64e12, node_size=256, link_bandwidth=200e9, network_bandwidth=6.25e9,
        source="Google Cloud documentation, v6e: 918 TFLOPS, 32 GB, 1640 GB/s, 3200 Gbit/s between chips, both ways",
    ),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in _TABLE}


def find_chip(name: str) -> Chip:
    """Returns the chip called `name`.

    Raises:
      ValueError: the table has no such chip; the message lists all names.

    Example:
      >>> find_chip("v5e").platform
      'tpu'
    """
    if name not in CHIPS:
        raise ValueError(f"unknown chip {name!r}; eqjax/perf/chips.py has {', '.join(CHIPS)}.")
    return CHIPS[name]


def peak_flops(device_kind: str) -> float | None:
    """Returns the bfloat16 FLOP/s of a device, or None if the table does not have it.

    Args:
      device_kind: JAX's name, `device.device_kind`. The longest prefix of whole words counts: "TPU v5 lite" is
        a v5e, "TPU v5" a v5p, and an L40 no L4. Laptops' chips of the same name are slower, and not in the table.

    Example:
      >>> peak_flops("NVIDIA H100 80GB HBM3")
      989000000000000.0
    """
    matches = [
        (len(kind), chip)
        for chip in _TABLE
        for kind in chip.device_kinds
        if re.match(rf"{re.escape(kind)}(?!\w| D\b| Laptop)", device_kind)
    ]
    return max(matches, key=lambda match: match[0])[1].peak_flops if matches else None

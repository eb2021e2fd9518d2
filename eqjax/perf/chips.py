"""Peak figures of accelerators, for the utilization of a run and for the cost model of `eqjax plan`.

Figures are the vendors', dense (without sparsity), per device as JAX counts devices.
"""

import dataclasses
from typing import Literal


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

    @property
    def float32_slowdown(self) -> int:
        """Time of a float32 product over a bfloat16 one: GPUs run TF32 at half the rate, TPUs take six passes."""
        return {"gpu": 2, "tpu": 6}[self.platform]


# Network figures are those of cloud offers: 8 adapters of 400 Gbit/s per node of 8 GPUs, one per GPU (200 Gbit/s
# for A100), and 25 GB/s per TPU host of 4 chips. Other clusters may have less.
_TABLE = (
    Chip(
        name="H100", platform="gpu", device_kinds=("NVIDIA H100",), peak_flops=989e12,
        memory=80e9, memory_bandwidth=3.35e12, node_size=8, link_bandwidth=450e9, network_bandwidth=50e9,
        source="NVIDIA H100 data sheet, SXM column: 1979 TFLOPS with sparsity, NVLink 900 GB/s both ways",
    ),
    Chip(
        name="H200", platform="gpu", device_kinds=("NVIDIA H200",), peak_flops=989e12,
        memory=141e9, memory_bandwidth=4.8e12, node_size=8, link_bandwidth=450e9, network_bandwidth=50e9,
        source="NVIDIA H200 data sheet, SXM column",
    ),
    Chip(
        name="A100", platform="gpu", device_kinds=("NVIDIA A100",), peak_flops=312e12,
        memory=80e9, memory_bandwidth=2.04e12, node_size=8, link_bandwidth=300e9, network_bandwidth=25e9,
        source="NVIDIA A100 80GB data sheet, SXM column: NVLink 600 GB/s both ways",
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
      device_kind: JAX's name, `device.device_kind`. The longest matching prefix counts: "TPU v5 lite" is
        a v5e, "TPU v5" a v5p.

    Example:
      >>> peak_flops("NVIDIA H100 80GB HBM3")
      989000000000000.0
    """
    matches = [(len(kind), chip) for chip in _TABLE for kind in chip.device_kinds if device_kind.startswith(kind)]
    return max(matches, key=lambda match: match[0])[1].peak_flops if matches else None

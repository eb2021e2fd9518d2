"""What accelerators can do at most, by the names JAX gives them: for utilization and for planning.

Figures are the makers', dense (no sparsity), per chip as JAX counts devices.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: short name.
      kinds: beginnings of `device.device_kind`.
      flops: bfloat16 products, FLOP/s.
      memory: bytes.
      bandwidth: of its memory, bytes/s.
      node: devices joined by the fast links (a node, or a whole pod slice).
      link: bytes/s that a device sends over them.
      network: bytes/s that a device sends beyond them.
      source: where the figures are from.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    node: int
    link: float
    network: float
    source: str


# Network: 8 adapters of 400 Gbit/s per node of 8 GPUs (one per GPU; 200 Gbit/s for A100), and 25 GB/s per
# TPU host of 4 chips, are what clouds of these offer; a cluster of yours may have less.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "H100", ("NVIDIA H100",), 989e12, 80e9, 3.35e12, 8, 450e9, 50e9,
            "NVIDIA H100 Tensor Core GPU data sheet, SXM column: 1979 TFLOPS with sparsity, NVLink 900 GB/s both ways",
        ),
        Chip(
            "H200", ("NVIDIA H200",), 989e12, 141e9, 4.8e12, 8, 450e9, 50e9,
            "NVIDIA H200 Tensor Core GPU data sheet, SXM column",
        ),
        Chip(
            "A100", ("NVIDIA A100",), 312e12, 80e9, 2.04e12, 8, 300e9, 25e9,
            "NVIDIA A100 80GB Tensor Core GPU data sheet, SXM column: NVLink 600 GB/s both ways",
        ),
        Chip(
            "v4", ("TPU v4",), 275e12, 32e9, 1.2e12, 4096, 150e9, 6.25e9,
            "Google Cloud documentation, TPU v4: 275 TFLOPS, 32 GiB, 1200 GB/s; 6 links of 50 GB/s, both ways",
        ),
        Chip(
            "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 0.819e12, 256, 100e9, 6.25e9,
            "Google Cloud documentation, TPU v5e: 197 TFLOPS, 16 GB, 819 GB/s, 1600 Gbit/s between chips, both ways",
        ),
        Chip(
            "v5p", ("TPU v5", "TPU v5p"), 459e12, 95e9, 2.765e12, 8960, 300e9, 6.25e9,
            "Google Cloud documentation, TPU v5p: 459 TFLOPS, 95 GB, 2765 GB/s, 4800 Gbit/s between chips, both ways",
        ),
        Chip(
            "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1.64e12, 256, 200e9, 6.25e9,
            "Google Cloud documentation, TPU v6e: 918 TFLOPS, 32 GB, 1640 GB/s, 3200 Gbit/s between chips, both ways",
        ),
    )
}  # fmt: skip


def peak_flops(device_kind):
    """bfloat16 FLOP/s of a device by JAX's name for it, or None where it is not in the table."""
    matches = [(kind, chip) for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)]
    return max(matches, key=lambda match: len(match[0]))[1].flops if matches else None

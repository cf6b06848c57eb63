"""Accelerators that a plan knows: peak rates, memory, links and price of a chip, each with its source."""

from dataclasses import dataclass

_DOCS = "https://cloud.google.com/tpu/docs"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as its vendor describes it.

    Attributes:
        name: such as "v5e"; the part of a topology before the colon.
        flops: peak bfloat16 operations per second.
        usable: bytes of HBM that a program can use on a device, as the compiler of libtpu 0.0.42 reports it; a v3 or v4
            chip has two devices, the others one.
        bandwidth: bytes per second between HBM and the chip.
        links: bytes per second that the chip can send to its neighbors in the slice, over all its links.
        dollars: list price per hour on demand in the United States, as known in 2025; prices change.
        source: page of ``flops`` and ``bandwidth``.
        links_source: how ``links`` follows from the vendor's numbers.
    """

    name: str
    flops: float
    usable: int
    bandwidth: float
    links: float
    dollars: float
    source: str
    links_source: str


_GIB = 2**30

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v3",
            flops=123e12,
            usable=int(15.48 * _GIB),
            bandwidth=900e9,
            links=340e12 / 1024,
            dollars=2.00,
            source=f"{_DOCS}/v3",
            links_source="all-reduce bandwidth of a pod, 340 TB/s, over its 1,024 chips",
        ),
        Chip(
            name="v4",
            flops=275e12,
            usable=int(15.25 * _GIB),
            bandwidth=1200e9,
            links=1.1e15 / 4096,
            dollars=3.22,
            source=f"{_DOCS}/v4",
            links_source="all-reduce bandwidth of a pod, 1.1 PB/s, over its 4,096 chips",
        ),
        Chip(
            name="v5e",
            flops=197e12,
            usable=int(15.75 * _GIB),
            bandwidth=819e9,
            links=51.2e12 / 256,
            dollars=1.20,
            source=f"{_DOCS}/v5e",
            links_source="all-reduce bandwidth of a pod, 51.2 TB/s, over its 256 chips",
        ),
        Chip(
            name="v5p",
            flops=459e12,
            usable=int(95.74 * _GIB),
            bandwidth=2765e9,
            links=1200e9 / 2,
            dollars=4.20,
            source=f"{_DOCS}/v5p",
            links_source="half of the bandwidth in both directions, 1,200 GB/s",
        ),
        Chip(
            name="v6e",
            flops=918e12,
            usable=int(31.25 * _GIB),
            bandwidth=1638e9,
            links=102.4e12 / 256,
            dollars=2.70,
            source=f"{_DOCS}/v6e",
            links_source="all-reduce bandwidth of a pod, 102.4 TB/s, over its 256 chips",
        ),
    )
}
"""TPU chips by name."""

A100_FLOPS = 312e12
"""Peak bfloat16 operations per second of an A100 (NVIDIA A100 Tensor Core GPU data sheet), without sparsity."""

"""GPUs by name: memory, dense bf16 arithmetic and bandwidths, as NVIDIA's data sheets tell them (SXM boards)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`memory` bytes, `flops` a second (bf16, without sparsity), `bandwidth` bytes a second of its memory, `link` bytes a
    second to another GPU of its node, one way; None where there is no figure."""

    name: str
    memory: int | None
    flops: float | None
    bandwidth: float | None
    link: float | None
    source: str


# Links: NVLink's total of the sheet (900, 600 GB/s) is of both ways. Memory in units of 10^9 bytes, as sold.
DEVICES = {
    d.name: d
    for d in (
        Device("A100-40G", 40 * 10**9, 312e12, 1.555e12, 300e9, "NVIDIA A100 data sheet, SXM 40GB"),
        Device("A100-80G", 80 * 10**9, 312e12, 2.039e12, 300e9, "NVIDIA A100 data sheet, SXM 80GB"),
        Device("H100", 80 * 10**9, 989e12, 3.35e12, 450e9, "NVIDIA H100 data sheet, SXM"),
        Device("H200", 141 * 10**9, 989e12, 4.8e12, 450e9, "NVIDIA H200 data sheet, SXM"),
        Device("cpu", None, None, None, None, "no figures: give --tflops, --memory-gb-s and --link-gb-s as measured"),
    )
}
GPUS = tuple(name for name in DEVICES if name != "cpu")

# Assumed: the share of `flops` that a step reaches, and bytes a second between nodes, a GPU and one way.
EFFICIENCY, NETWORK = 0.35, 50e9

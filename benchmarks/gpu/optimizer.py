"""An update of the trainer's Adam (megatron/adam.py) over matrices of Qwen2.5-VL-3B's feed-forward layers: seconds and the
device memory that moments take, with moments on the device, in the host's memory (`megatron.offload.optimizer`) and in bfloat16
(`optimizer.moments_dtype`). Moments on the host must give the same bits."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu.job import Job

WIDTH, MATRICES = (2048, 11008), 24  # 541 million numbers
TINY = (64, 48)
STEPS = 4  # the first is not measured
WAYS: dict[str, tuple[float, str | None]] = {
    "device": (0.0, None),
    "host": (1.0, None),
    "half on the host": (0.5, None),
    "device, bfloat16": (0.0, "bfloat16"),
}


def run(job: Job) -> None:
    import torch

    actors.prepare()
    shape = TINY if job.tiny else WIDTH
    sums: dict[str, list[float]] = {}
    for name, (on_host, dtype) in WAYS.items():
        found, sums[name] = measured(job.device, shape, on_host, getattr(torch, dtype) if dtype else None)
        job.row(moments=name, numbers=MATRICES * shape[0] * shape[1], **found)
        actors.release()
        if dtype is None and sums[name] != sums["device"]:
            job.fault(f"{name}: the weights differ from those with moments on the device")


def measured(device: str, shape: tuple[int, int], on_host: float, dtype: Any) -> tuple[dict[str, float], list[float]]:
    """What was measured, and the sum of each matrix after it."""
    import torch

    from megatron_mmsr1.megatron import platform
    from megatron_mmsr1.megatron.adam import GroupStepAdam

    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device=device)) for _ in range(MATRICES)]
    for p in params:
        p.grad = torch.randn_like(p)
    before = torch.cuda.memory_allocated() if platform.has_cuda() else 0
    adam = GroupStepAdam(params, lr=1e-3)
    adam.keep(on_host, dtype)
    spent: list[float] = []
    for _ in range(STEPS):
        platform.synchronize()
        started = time.perf_counter()
        adam.step()
        platform.synchronize()
        spent.append(time.perf_counter() - started)
    held = (torch.cuda.memory_allocated() - before) / 2**30 if platform.has_cuda() else 0.0
    with torch.no_grad():
        return {"seconds": statistics.median(spent[1:]), "held_gib": held}, [float(p.double().sum()) for p in params]

"""The kernels in which a train step of Qwen2-VL-2B's shape over 8k tokens spends its time, from torch.profiler."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu import mfu, shapes
from benchmarks.gpu.job import Job

SHOWN = 30


def run(job: Job) -> None:
    actors.prepare()
    from torch.profiler import ProfilerActivity, profile

    cuda = job.device == "cuda"
    lengths = (mfu.TINY_PACKS if job.tiny else mfu.PACKS)["8k"]
    with tempfile.TemporaryDirectory() as home:
        config = shapes.write(shapes.NAMES[0], Path(home), tiny=job.tiny)
        actor = actors.make(Path(home), tokens=sum(lengths), dtype="bfloat16", random_weights=True)
    rollouts = actors.rollouts(lengths, shapes.ordinary_ids(config))
    weights = actors.advantages(len(lengths))
    actor.train_step(rollouts, weights)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        actor.train_step(rollouts, weights)
        seconds = time.perf_counter() - started
    kernels = sorted(((_micros(k, cuda=cuda), k) for k in profiled.key_averages()), key=lambda x: -x[0])
    kernels = [(us, k) for us, k in kernels if us > 0]
    total = sum(us for us, _ in kernels)
    if not kernels:
        job.fault("the profiler saw no kernel: may this process use the GPU's counters (CUPTI)?")
    job.row(what="step", seconds=seconds, kernel_seconds=total / 1e6, kernels=len(kernels))
    for us, k in kernels[:SHOWN]:
        job.row(what="kernel", name=k.key[:160], calls=k.count, ms=us / 1e3, share=us / total)


def _micros(kernel: Any, *, cuda: bool) -> float:
    return kernel.self_device_time_total if cuda else kernel.self_cpu_time_total

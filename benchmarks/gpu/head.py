"""The log-prob head (megatron/logprob.py), which never holds more logits than a chunk's, against the naive way: time of forward
and backward, peak memory above what stands there before, and how far their log-probs are apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu.job import Job

CHUNKS = (512, 2048, 8192)  # 2048 is the default of megatron.logprob_chunk
REPEATS = 3


def run(job: Job) -> None:
    actors.prepare()
    import torch
    import torch.distributed as dist

    from megatron_mmsr1.config import parse
    from megatron_mmsr1.megatron import parallel, platform
    from megatron_mmsr1.megatron.logprob import TokenHead

    parallel.init(parse({"model": {"path": "none"}}))
    tokens, hidden, vocabulary = (64, 32, 640) if job.tiny else (8192, 2048, 151936)  # Qwen2.5-VL-3B's
    chunks = (16, 64) if job.tiny else CHUNKS
    dtype = torch.float32 if job.device == "cpu" else torch.bfloat16
    make = {"dtype": dtype, "device": platform.device()}
    torch.manual_seed(0)
    h = torch.randn(tokens, 1, hidden, **make).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, **make) * 2 / hidden**0.5).requires_grad_()
    rows = torch.arange(tokens, device=make["device"])
    targets = torch.randint(vocabulary, (tokens,), device=make["device"])
    banned = list(range(4))
    targets.clamp_(min=len(banned))

    def ours(chunk: int) -> Callable[[], Any]:
        group: Any = dist.group.WORLD
        options: dict[str, Any] = {"banned": banned, "temperature": 1.0, "group": group, "sequence_parallel": False}
        head = TokenHead(rows, targets, chunk=chunk, **options)
        return lambda: head(h, weight)

    reference = None
    ways = {"naive": lambda: naive(h, weight, targets, banned)} | {f"chunks of {c}": ours(c) for c in chunks}
    for name, way in ways.items():
        row: dict[str, Any] = {"way": name, "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary, "dtype": str(dtype)}
        try:
            out, measured = _measure(way, [h, weight])
        except torch.OutOfMemoryError as e:
            job.row(**row, error=str(e)[:300])
            continue
        if reference is None:
            reference = out
        row["largest_difference"] = float((out - reference).abs().max())
        job.row(**row, **measured)
        if not row["largest_difference"] < (1e-4 if dtype is torch.float32 else 0.05):
            job.fault(f"{name}: log-prob or entropy {row['largest_difference']:.2e} from {next(iter(ways))}'s")


def naive(h: Any, weight: Any, targets: Any, banned: list[int]) -> Any:
    """The same [2, N] from whole float32 logits."""
    import torch

    z = (h.squeeze(1) @ weight.T).float()
    z = z.index_fill(1, torch.tensor(banned, device=z.device), -1e30)
    logp = z.log_softmax(-1)
    return torch.stack([logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)])


def _measure(way: Callable[[], Any], inputs: list[Any]) -> tuple[Any, dict[str, Any]]:
    """float32 [2, N]; median seconds and, with CUDA, the peak of allocated bytes."""
    from megatron_mmsr1.megatron import platform

    out: Any = None
    seconds: list[float] = []
    most: int | None = None
    for _ in range(REPEATS + 1):
        for x in inputs:
            x.grad = None
        peak = platform.peak_above()
        platform.synchronize()
        started = time.perf_counter()
        out = way()
        out[0].sum().backward()
        platform.synchronize()
        seconds.append(time.perf_counter() - started)
        out, most = out.detach(), peak()
    for x in inputs:
        x.grad = None
    return out, {"seconds": statistics.median(seconds[1:]), "peak_memory_gib": None if most is None else most / 2**30}

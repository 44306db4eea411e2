"""Each kernel of the trainer that is here (megatron/attention/): forward and backward against a softmax written out in float32,
then timed on a pack of 8k tokens; sequences that stand whole, and groups whose prompt stands once. transformer-engine's layer
is compared by `mmsr1 doctor` and timed by the part `mfu`."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

from benchmarks.gpu import actor as actors
from benchmarks.gpu.job import Job

HEADS, GROUPS, HEAD = 16, 2, 128  # Qwen2.5-VL-3B's
# Lengths of runs and the run above each: whole sequences; two groups of a prompt and four answers.
SMALL = {"whole": ([200, 33, 128, 7], ()), "shared": ([130, 40, 9, 61, 30, 7, 7, 90], (-1, 0, 0, 0, -1, 4, 4, 4))}
PROMPTS = ([1000, *[380] * 8], (-1, *[0] * 8))
LARGE = {"whole": ([1024, 1536, 2048, 3584], ()), "shared": ([*PROMPTS[0], *PROMPTS[0]], (*PROMPTS[1], -1, *[9] * 8))}
ALLOWED = {"float32": 1e-4, "bfloat16": 0.03}  # of the largest number, as `mmsr1 doctor` allows
REPEATS = 5


def run(job: Job) -> None:
    import torch

    actors.prepare()
    from megatron_mmsr1.megatron.attention.choice import KERNELS, situation

    name = "float32" if job.device == "cpu" else "bfloat16"
    dtype = getattr(torch, name)
    for kernel in KERNELS.values():
        for way in SMALL:
            case = {"kernel": kernel.name, "sequences": way, "dtype": name}
            lacks = kernel.lacks(situation(name, HEAD, shared_prefixes=way == "shared"))
            if lacks or kernel.attend is None:
                job.skipped(f"{kernel.name}, {way}: {', '.join(lacks) or 'a layer of its own'}")
                continue
            try:
                found = apart(kernel.name, job.device, dtype, way)
                found |= {} if job.tiny else timed(kernel.name, job.device, dtype, way)
            except RuntimeError as e:  # a kernel that refuses what it did not say it would
                job.row(**case, error=f"{type(e).__name__}: {e}"[:300])
                job.fault(f"{case}: {type(e).__name__}: {e}"[:300])
                continue
            job.row(**case, **found)
            worst = max(found["output"], found["gradients"])
            if not worst <= ALLOWED[name]:
                job.fault(f"{case}: {worst:.1e} from a softmax in float32, allowed {ALLOWED[name]:.0e}")


def apart(name: str, device: str, dtype: Any, way: str = "whole") -> dict[str, float]:
    """The largest error of the output and of the gradients of q, k and v, as shares of their largest numbers."""
    import torch

    from megatron_mmsr1.megatron.attention.choice import KERNELS

    layout, inputs, to_out = _case(SMALL[way], device, dtype)
    attend = KERNELS[name].attend
    assert attend is not None
    out = attend(*inputs, layout, HEAD**-0.5)
    ours = torch.autograd.grad(out, inputs, to_out)
    plain = [x.detach().float().requires_grad_() for x in inputs]
    wanted = _written_out(plain[0], plain[1], plain[2], layout.until)
    theirs = torch.autograd.grad(wanted, plain, to_out.float())
    off = [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip((out, *ours), (wanted, *theirs), strict=True)]
    return {"output": off[0], "gradients": max(off[1:])}


def timed(name: str, device: str, dtype: Any, way: str) -> dict[str, float]:
    """Median seconds of forward and backward together, of which a first pass, which may compile, does not count, and the most
    device memory above what inputs take."""
    import torch

    from megatron_mmsr1.megatron import platform
    from megatron_mmsr1.megatron.attention.choice import KERNELS

    layout, inputs, to_out = _case(LARGE[way], device, dtype)
    attend = KERNELS[name].attend
    assert attend is not None
    spent: list[float] = []
    peak = platform.peak_above()
    for _ in range(REPEATS + 1):
        platform.synchronize()
        started = time.perf_counter()
        torch.autograd.grad(attend(*inputs, layout, HEAD**-0.5), inputs, to_out)
        platform.synchronize()
        spent.append(time.perf_counter() - started)
    return {"seconds": statistics.median(spent[1:]), "first_s": spent[0], "peak_gib": (peak() or 0) / 2**30}


def _case(runs: Any, device: str, dtype: Any) -> tuple[Any, list[Any], Any]:
    """The layout, q, k and v, and a gradient of the output."""
    import torch

    from megatron_mmsr1.megatron.layout import packed

    generator = torch.Generator().manual_seed(0)
    lengths, parents = runs

    def tensor(*shape: int) -> Any:
        return torch.randn(sum(lengths), *shape, generator=generator).to(device, dtype)

    inputs = [tensor(n, HEAD).requires_grad_() for n in (HEADS, GROUPS, GROUPS)]
    return packed(lengths, parents, device=torch.device(device)), inputs, tensor(HEADS * HEAD)


def _written_out(q: Any, k: Any, v: Any, until: Any) -> Any:
    """softmax(q k' / sqrt(d)) v, row i over the rows j <= i < until[j]; float32 [T, heads * d]."""
    import torch

    k, v = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (k, v))
    rows = torch.arange(len(until), device=until.device)
    seen = (rows[None] <= rows[:, None]) & (rows[:, None] < until[None])
    scores = torch.einsum("qhd,khd->hqk", q, k) * HEAD**-0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v).flatten(1)

"""What of this code can be imported here, and which kernels are really there: each is run, not only looked for."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import time
from collections.abc import Callable
from typing import Any

import megatron_mmsr1
from benchmarks.gpu import actor as actors
from benchmarks.gpu.job import Job

# Rooms of the package that the trainer is made of; what stands above it (search, engines, demo) wants packages of its own.
ROOMS = ("algorithm", "checkpoints", "config", "data", "megatron", "models", "plugins", "procs", "run", "sync", "train")
OPTIONAL = {
    "transformer_engine.pytorch": "Megatron's fused layers and attention",
    "flash_attn": "FlashAttention 2 (SGLang and transformer-engine use it)",
    "flash_attn_interface": "FlashAttention 3",
    "apex": "fused Adam",
    "fused_weight_gradient_mlp_cuda": "apex's gradient accumulation fusion",
    "triton": "what torch.compile generates",
    "sgl_kernel": "SGLang's kernels",
    "torch.nn.attention.varlen": "torch's attention over packed sequences",
}


def run(job: Job) -> None:
    _packages(job)
    if importlib.util.find_spec("megatron") and importlib.util.find_spec("transformers"):
        actors.prepare()
        _modules(job)
    else:
        job.skipped("modules of the trainer: megatron-core or transformers is not installed")
    _attention(job)
    _kernels(job)


def _packages(job: Job) -> None:
    for name, what in OPTIONAL.items():
        try:
            module = importlib.import_module(name)
        except ImportError as e:
            job.row(kind="package", name=name, there=False, what=what, detail=str(e)[:200])
        else:
            job.row(kind="package", name=name, there=True, what=what, detail=getattr(module, "__version__", ""))


def _modules(job: Job) -> None:
    """Every module of the trainer's rooms: what a missing package keeps from being imported is listed, any other error is a
    fault."""
    for name in _names():
        started = time.perf_counter()
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            job.row(kind="module", name=name, there=False, detail=f"needs {e.name}")
        except Exception as e:
            job.row(kind="module", name=name, there=False, detail=f"{type(e).__name__}: {e}"[:300])
            job.fault(f"import {name}: {type(e).__name__}: {e}")
        else:
            job.row(kind="module", name=name, there=True, seconds=round(time.perf_counter() - started, 3))


def _names() -> list[str]:
    found = []
    for room in pkgutil.iter_modules(megatron_mmsr1.__path__, "megatron_mmsr1."):
        if room.name.rpartition(".")[2] not in ROOMS:
            continue
        found.append(room.name)
        if room.ispkg:
            path = importlib.import_module(room.name).__path__
            found += [m.name for m in pkgutil.walk_packages(path, f"{room.name}.") if not m.name.endswith("__main__")]
    return found


def _probe(job: Job, kind: str, name: str, act: Callable[[], Any]) -> None:
    """Run it and say whether it did, or why not."""
    try:
        detail = act()
    except Exception as e:
        job.row(kind=kind, name=name, there=False, detail=f"{type(e).__name__}: {e}".splitlines()[0][:300])
    else:
        job.row(kind=kind, name=name, there=True, detail=str(detail or ""))


def _attention(job: Job) -> None:
    """Which of torch's attention kernels take the trainer's case, both ways: bf16, causal, grouped keys and values."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def under(backend: Any) -> Callable[[], Any]:
        def act() -> Any:
            with sdpa_kernel([backend]):
                return _attend(job.device)

        return act

    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        _probe(job, "attention", backend.name.lower(), under(backend))
    _probe(job, "attention", "torch's own choice", lambda: ", ".join(_kernel_names(lambda: _attend(job.device), job.device)))
    from megatron_mmsr1.megatron.attention.choice import choose, situation

    job.row(kind="attention", name="the trainer's", there=True, detail=choose("auto", situation()).reason)


def _attend(device: str) -> None:
    import torch

    make: dict[str, Any] = {"dtype": torch.bfloat16, "device": device, "requires_grad": True}
    q = torch.randn(1, 16, 256, 128, **make)
    k, v = (torch.randn(1, 2, 256, 128, **make) for _ in range(2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out.sum().backward()


def _kernel_names(act: Callable[[], Any], device: str) -> list[str]:
    """The kernels that took longest."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        act()
    spent = [(k.self_device_time_total if cuda else k.self_cpu_time_total, k.key[:80]) for k in profiled.key_averages()]
    return [name for _, name in sorted(spent, reverse=True)[:3]]


def _kernels(job: Job) -> None:
    import torch
    import torch.nn.functional as F

    def tensor(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.bfloat16, device=job.device, requires_grad=True)

    def rms_norm() -> str:
        x = tensor(64, 128)
        return ", ".join(_kernel_names(lambda: F.rms_norm(x, (128,), tensor(128), 1e-6).sum().backward(), job.device))

    def fused_adam() -> None:
        w = tensor(64)
        w.sum().backward()
        torch.optim.AdamW([w], fused=True).step()

    def compiled() -> str:
        started = time.perf_counter()
        torch.compile(lambda x: F.silu(x) * x)(tensor(64, 128)).sum().backward()
        return f"{time.perf_counter() - started:.1f} s to compile"

    _probe(job, "kernel", "rms_norm", rms_norm)
    _probe(job, "kernel", "fused AdamW of torch", fused_adam)
    if job.device == "cuda":
        _probe(job, "kernel", "torch.compile (megatron-core's fused activations)", compiled)
    else:
        job.skipped("torch.compile: not on the CPU, where platform.install() turns it off")
    if importlib.util.find_spec("megatron"):
        _probe(job, "kernel", "gradient accumulation fusion", lambda: importlib.import_module("fused_weight_gradient_mlp_cuda"))
        _probe(job, "kernel", "the trainer's Adam", _adam)


def _adam() -> str:
    import megatron.core.optimizer as optimizer

    from megatron_mmsr1.megatron import adam

    adam.install()
    return f"{optimizer.Adam.__module__}.{optimizer.Adam.__name__}"

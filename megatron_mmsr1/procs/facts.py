"""What this machine has, what the trainer and the engine would use of it, and what is missing: facts that cost nothing.

A run keeps them as environment.json, and `mmsr1 doctor` begins with them. Versions come from the packages' metadata; of the
heavy ones only torch is imported.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs.patches import PATCHES
from megatron_mmsr1.procs.ports import port_is_free

PACKAGES = (
    "torch",
    "transformers",
    "megatron-core",
    "megatron-bridge",
    "sglang",
    "sglang-kernel",
    "transformer-engine",
    "flash-attn",
    "flashinfer-python",
    "numpy",
    "pydantic",
    "tensorboard",
    "wandb",
)
GPU_PACKAGES = {
    "transformer-engine": "Megatron's norms and linears run unfused, and its attention is torch's",
    "flash-attn": "transformer-engine's attention has cuDNN's kernels alone",
    "sglang-kernel": "SGLang cannot run on the GPU",
}
DRIVER = Path("/proc/driver/nvidia/version")
PORTS = {8100: "search server (mmsr1 search serve)", 29500: "torchrun's rendezvous"}


def version(package: str) -> str | None:
    """Of an installed distribution; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def collect(ports: Mapping[int, str] = PORTS) -> dict[str, Any]:
    """JSON-ready facts: python, machine, cuda, packages, kernels, attention, patches, ports, and as sentences `errors`, with
    which nothing would train, and `warnings`.

    `ports`: those to look at, and what each is for.
    """
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "machine": _machine(),
        "packages": {p: version(p) for p in PACKAGES},
        "cuda": _cuda(),
        "ports": {str(p): "free" if port_is_free(p) else "taken" for p in ports},
    }
    on_gpu = bool(facts["cuda"]["devices"])
    facts["sgl_kernel"] = _sgl_kernel(on_gpu)
    # The engine's; the trainer's is a matter of its run too (megatron/attention/choice.py).
    facts["attention"] = {"engine": "SGLang's default for this GPU" if on_gpu else "torch_native"}
    facts["patches"] = [
        {k: getattr(p, k) for k in ("name", "package", "version", "installed", "fits", "file", "why", "where")} for p in PATCHES
    ]
    facts["errors"] = _errors(facts)
    facts["warnings"] = _warnings(facts, on_gpu, ports)
    return facts


def driver() -> str | None:
    """The version of NVIDIA's kernel module; None where there is none."""
    found = re.search(r"\s(\d+\.\d+[\d.]*)\s", DRIVER.read_text()) if DRIVER.is_file() else None
    return found[1] if found else None


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "shared_memory_gib": round(shutil.disk_usage("/dev/shm").total / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as f:
        return next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), platform.machine())


def _device(d: Any) -> dict[str, Any]:
    return {"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1), "capability": f"{d.major}.{d.minor}"}


def _cuda() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"torch_build": None, "devices": [], "nccl": None, "driver": driver(), "backend": "none: torch is missing"}
    import torch
    from torch.cuda import nccl

    devices: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            devices.append(_device(torch.cuda.get_device_properties(i)))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    release = ".".join(map(str, nccl.version())) if torch.version.cuda and devices else None
    return {
        "torch_build": torch.version.cuda or "cpu",
        "devices": devices,
        "nccl": release,
        "driver": driver(),
        "backend": f"nccl {release}" if devices else "gloo",
    }


def _sgl_kernel(on_gpu: bool) -> str:
    """Which sgl_kernel SGLang would import: the real wheel, or our stand-in for machines without CUDA."""
    if version("sglang-kernel") or version("sgl-kernel"):
        return "real"
    return "missing" if on_gpu else "shim (megatron_mmsr1/rollout/engines/sglang/cpu_shims)"


def _errors(facts: dict[str, Any]) -> list[str]:
    out = [f"{p} is not installed: run ./scripts/env.sh" for p in PACKAGES[:5] if facts["packages"][p] is None]
    return out + [
        f"{p['file']} changes internals of {p['package']} {p['version']}, but {p['installed']} is installed: where it is used "
        f"({p['where']}), it will refuse to run"
        for p in facts["patches"]
        if p["installed"] and not p["fits"]
    ]


def _warnings(facts: dict[str, Any], on_gpu: bool, ports: Mapping[int, str]) -> list[str]:
    out: list[str] = []
    if on_gpu:
        out += [
            f"{p} is not installed: {so}; run ./scripts/env.sh --gpu"
            for p, so in GPU_PACKAGES.items()
            if not facts["packages"][p]
        ]
        if facts["machine"]["shared_memory_gib"] < 8:
            out.append("/dev/shm holds less than 8 GiB: NCCL needs it between ranks (a container's --shm-size)")
    else:
        out.append(
            "no CUDA device: Megatron-Core runs unfused over gloo, SGLang on torch_native; "
            "right for the Atlas, not for a real model"
        )
        if shutil.which("nvidia-smi"):
            out.append("nvidia-smi is here, but torch sees no device: check the driver, CUDA_VISIBLE_DEVICES and torch's build")
    m = facts["machine"]
    if m["cores"] < 2:
        out.append("one core: trainer and engine share it, and time-outs may strike; two are the least that was tried")
    if m["memory_free_gib"] < 8:
        out.append(
            f"{m['memory_free_gib']} GiB of memory are free: the Atlas loop wants about 8 "
            "(two ranks, an engine, a search server)"
        )
    if m["disk_free_gib"] < 10:
        out.append(f"{m['disk_free_gib']} GiB of disk are free here: runs keep checkpoints and weights")
    out += [
        f"port {p}, the default of the {what}, is taken: name another"
        for p, what in ports.items()
        if facts["ports"][str(p)] == "taken"
    ]
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        out.append(
            "PYTHONDONTWRITEBYTECODE is set: engines start slowly unless bytecode was compiled (scripts/env.sh does that)"
        )
    return out

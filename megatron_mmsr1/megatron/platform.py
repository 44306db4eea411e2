"""The one place that knows whether this machine has CUDA. `install()` comes first in every process that trains.

The rest of megatron/ and the trainer ask here for a device, a backend, a seed or a memory figure and never name CUDA.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import random
import resource
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Make megatron.core and megatron.bridge importable and runnable here. Idempotent.

    With CUDA: binds the process to its local device. Without: routes megatron-core's hard-coded CUDA calls to the CPU
    (`cpu.py`). Without transformer-engine: puts a stub where megatron-bridge imports it unconditionally (`bridge.py`). Must run
    before megatron is imported.
    """
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    # megatron-core 0.19 calls torch.distributed by names, types and argument orders that torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    # The distributed optimizer looks for gradients on shards that are views.
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
    for name in ("megatron.core", "megatron.bridge", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # megatron-bridge passes it arguments that it deprecates
    # This one sets its own level, to report every optional package that is absent.
    logging.getLogger("megatron.bridge.utils.import_utils").disabled = True
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    else:
        from megatron_mmsr1.megatron import cpu

        cpu.install()
    from megatron_mmsr1.megatron import bridge

    bridge.install()


def local_rank() -> int:
    """This process's place on its machine, as torchrun tells it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device() -> int:
    """The local rank's, of those that this process sees: Slurm may show each rank its own alone."""
    return local_rank() % torch.cuda.device_count()


def has_cuda() -> bool:
    """Whether tensors live on a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Where parameters and activations live."""
    return torch.device("cuda", _device()) if has_cuda() else torch.device("cpu")


def device_name() -> str:
    """What the driver calls the GPU; "cpu" without CUDA."""
    return torch.cuda.get_device_name() if has_cuda() else "cpu"


def attention_facts() -> dict[str, Any]:
    """What `attention.kernel.Situation` wants to know of device and torch."""
    return {
        "cuda": has_cuda(),
        "capability": torch.cuda.get_device_capability() if has_cuda() else (0, 0),
        "varlen": _varlen(),
        "flash": torch.backends.cuda.is_flash_attention_available(),
        "cudnn": torch.backends.cudnn.is_available(),
        "triton": importlib.util.find_spec("triton") is not None,
    }


def _varlen() -> bool:
    """Whether torch's attention over packed sequences takes what `attention.varlen` gives it; older ones know less."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def backend() -> str:
    """The torch.distributed backend of the model's process groups."""
    return "nccl" if has_cuda() else "gloo"


def seed(value: int) -> None:
    """Seed Python, numpy and torch alike; megatron-core's own generators are seeded with the process groups."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def generator_state() -> torch.Tensor:
    """The state of the device's default generator (the CPU's without CUDA)."""
    return torch.cuda.get_rng_state() if has_cuda() else torch.get_rng_state()


def set_generator_state(state: torch.Tensor) -> None:
    """Put back what `generator_state` gave."""
    if has_cuda():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def synchronize() -> None:
    """Wait for the device, so that a clock read afterwards means something."""
    if has_cuda():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """The largest memory this process has held: allocated device memory with CUDA, resident memory without."""
    if has_cuda():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def peak_above() -> Callable[[], int | None]:
    """Starts to watch; what is returned tells the most bytes of device memory allocated since, above those of now. None without
    CUDA, where the process's peak cannot be set back."""
    if not has_cuda():
        return lambda: None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def give_back_cache() -> None:
    """Memory that no tensor uses, to whoever shares the device."""
    if has_cuda():
        torch.cuda.empty_cache()

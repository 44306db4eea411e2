"""Megatron-core on the CPU: every hard-coded CUDA device, stream, generator and type name answered by the CPU's.

Tied to megatron-core's and torch's internals (`procs.patches`), which tests/test_megatron.py exercises.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_mmsr1.procs import patches

CPU = torch.device("cpu")

# megatron-core's optimizers compare `tensor.type()` with these strings.
_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


class CudaToCpu(TorchFunctionMode):
    """While active, tensors asked for on CUDA are made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        elif func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        elif func is torch.Tensor.type and len(args) == 1:
            name = func(*args)
            caller = sys._getframe(1).f_code.co_filename
            return _TYPE_NAMES.get(name, name) if "megatron/core/optimizer" in caller else name
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        return func(*args, **kwargs) if kwargs else func(*args)


class _Stream:
    """A stream or event on a machine that has none: everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def record_event(self, *args: Any) -> _Stream:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _answer(value: Any) -> Callable[..., Any]:
    """A new function each time: torch.compile's import refuses two names for one object."""
    return lambda *args, **kwargs: value


_MODE: CudaToCpu | None = None


def install() -> None:
    """Patch torch.cuda, megatron-core's generator access and autograd for the rest of the process. Idempotent."""
    global _MODE
    if _MODE is not None:
        return
    patches.check("torch-cuda-on-cpu")
    patches.check("core-on-cpu")
    from megatron_mmsr1.megatron import cpu_experts

    # megatron-core decorates with torch.compile at import; one compilation takes longer than a small run gains from it.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    _patch_cuda()
    _patch_generators()
    cpu_experts.install()
    _MODE = CudaToCpu()
    _MODE.__enter__()
    _keep_mode_in_backward(_MODE)


def _patch_cuda() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = _answer(CPU)
    cuda.device_count = _answer(1)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "_lazy_init"):
        setattr(cuda, name, _answer(None))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _answer(0))
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = lambda *args, **kwargs: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _answer(None), _answer(None)


def _patch_generators() -> None:
    """The CUDA generator becomes the CPU's default one."""
    cuda: Any = torch.cuda
    # Not torch.manual_seed, which calls manual_seed_all itself.
    cuda.manual_seed = lambda value: torch.default_generator.manual_seed(value)
    cuda.manual_seed_all = _answer(None)
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    import megatron.core.tensor_parallel.random as core_random

    core: Any = core_random
    core._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    core._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _keep_mode_in_backward(mode: CudaToCpu) -> None:
    """`Tensor.backward` is itself dispatched through the mode, which is off inside its handler: activation recompute, which
    runs forward code in there, needs it on again."""
    autograd: Any = torch.autograd
    engine = autograd._engine_run_backward

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return engine(*args, **kwargs)

    autograd._engine_run_backward = run

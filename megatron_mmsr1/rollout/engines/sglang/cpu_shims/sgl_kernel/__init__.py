"""Stands in for `sgl_kernel` on a machine without CUDA, where the real package is absent or has only CUDA objects.

SGLang's CPU path imports `sgl_kernel` unconditionally and looks up a few compiled operators while importing its models, but
runs none of them where AMX is off: `convert_weight_packed` stays undefined on purpose, because its presence turns the packed
AMX path on. So this package offers their schemas, without kernels, and any other name as a function that raises. Only
`cpu_shims.use_sgl_kernel` puts this directory on the import path. Tied to SGLang's internals: tests/test_rollout_shim.py.

The one operator with a body is `murmur_hash32_cpu`: SGLang's seeded sampling asks it for its noise.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

__version__ = "0.4.7"  # the sglang-kernel release that sglang 0.5.21 pins

_UNAVAILABLE = (
    "fused_sigmoid_mul_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_moe_router_cpu",
    "rmsnorm_cpu",
    "fused_dual_residual_rmsnorm_cpu",
)
_library = torch.library.Library("sgl_kernel", "FRAGMENT")
for _op in _UNAVAILABLE:
    # Only the name is ever looked up; a call would fail for want of a kernel, naming the operator.
    _library.define(f"{_op}(Tensor x) -> ()")
_library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor columns) -> Tensor")

_MASK = 0xFFFFFFFF


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    return ((x << bits) | (x >> (32 - bits))) & _MASK


def _mix(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    block = (_rotate((block * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK
    return (_rotate(state ^ block, 13) * 5 + 0xE6546B64) & _MASK


def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (x86, 32 bit, public domain: A. Appleby) of the 16 bytes seed (8), position (4), column (4).

    `seed` [n] integer of 64 bits, `positions` [n], `columns` [m] -> [n, m] int64 holding values in [0, 2**32).
    Products of two 32-bit numbers wrap in int64, which leaves their low 32 bits right; the masks keep just those.
    """
    seed = seed.view(torch.int64) if seed.dtype == torch.uint64 else seed.to(torch.int64)
    state = torch.zeros_like(seed)
    for block in (seed & _MASK, (seed >> 32) & _MASK, positions.to(torch.int64) & _MASK):
        state = _mix(state, block)
    # Everything but the column was hashed once a row; the column broadcasts it to [n, m].
    state = _mix(state[:, None], columns.to(torch.int64)[None, :] & _MASK) ^ 16
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _MASK
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _MASK
    return state ^ (state >> 16)


_library.impl("murmur_hash32_cpu", murmur_hash32, "CPU")


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU version here (megatron_mmsr1's stand-in)")

    missing.__name__ = name
    return missing

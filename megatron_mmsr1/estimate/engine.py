"""What an engine holds on each of its GPUs: weights, and keys and values for so many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.memory import BYTES
from megatron_mmsr1.estimate.parameters import whole


@dataclass(frozen=True)
class Share:
    """Of each GPU. `kv_tokens`: how many fit into what `static`, the share of memory that SGLang gives to weights and cache
    (mem_fraction_static), leaves beside the weights; None where either is not known."""

    gpus: int
    weights: int
    kv_bytes_a_token: int
    static: float | None
    kv_tokens: int | None


def weights(cfg: RunConfig, d: Dimensions, gpus: int) -> int:
    """Bytes of them on each of an engine's GPUs."""
    return whole(d).total * BYTES[cfg.model.dtype] // max(1, gpus)


def share(cfg: RunConfig, d: Dimensions, memory: int | None) -> Share:
    """Tensor parallelism as `placement.engines.gpus_each` or the engine's settings say; a key-value head is not divided."""
    native = getattr(cfg.engine, "sglang", {})
    gpus = max(1, cfg.placement.engines.gpus_each or int(native.get("tp_size") or native.get("tensor_parallel_size") or 1))
    own = weights(cfg, d, gpus)
    kv = 2 * d.layers * max(1, d.groups // gpus) * d.head * BYTES[cfg.model.dtype]
    static = native.get("mem_fraction_static")
    room = None if static is None or memory is None else max(0, int(static * memory) - own) // kv
    return Share(gpus, own, kv, static, room)

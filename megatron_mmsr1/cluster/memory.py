"""What a run's GPUs hold for certain, before a batch: weights, gradients, optimizer. Activations and caches come on top."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_mmsr1.config import MegatronConfig, RunConfig
from megatron_mmsr1.errors import UsageError

BYTES = {"float32": 4, "bfloat16": 2}
_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def parameters(checkpoint: Path) -> int | None:
    """How many parameters a Hugging Face checkpoint holds, by its shards' headers; None where there are none to read."""
    total = 0
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if not 2 <= size <= 100 << 20:
                raise UsageError(f"{shard} is no safetensors file")
            header = json.loads(f.read(size))
        for name, t in header.items():
            if name != "__metadata__":
                first, last = t["data_offsets"]
                total += (last - first) // _STORED.get(t["dtype"], 2)
    return total or None


def own_parameters(m: MegatronConfig, n: int, experts: int) -> tuple[float, float]:
    """A rank's share of `n` parameters, of which `experts` are the experts' own: (of the others, of those)."""
    stage = m.pipeline_parallel
    return (n - experts) / (m.tensor_parallel * stage), experts / (m.expert_tensor * m.expert_parallel * stage)


def trainer_bytes(cfg: RunConfig, n: int, experts: int = 0) -> int:
    """A rank's share of a model of `n` parameters, all of them trained, `experts` of them the experts' own.

    Megatron-Core's mixed precision: weights (2 or 4 bytes), float32 gradients (4), and Adam's float32 master weights and two
    moments (12; without master weights 8), which the distributed optimizer shards over data- and context-parallel ranks. A
    frozen part needs less, embeddings on the first and last stage more.
    """
    m = cfg.megatron
    state = 12 if cfg.model.dtype == "bfloat16" else 8
    replicas = (
        cfg.data_parallel * m.context_parallel,
        cfg.train.ranks / (m.expert_tensor * m.expert_parallel * m.pipeline_parallel),
    )
    total = 0.0
    for own, copies in zip(own_parameters(m, n, experts), replicas, strict=True):
        total += own * (BYTES[cfg.model.dtype] + 4 + state / (copies if m.distributed_optimizer else 1))
    return int(total)


def engine_bytes(cfg: RunConfig, n: int, gpus: int) -> int:
    """The weights alone, on each of an engine's GPUs."""
    return n * BYTES[cfg.model.dtype] // max(1, gpus)

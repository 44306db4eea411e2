"""A name for the policy's weights, by content: evaluations and exported models carry it, so that nobody mixes them up."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from megatron_mmsr1.megatron.model import Built
from megatron_mmsr1.megatron.parallel import Parallel


def weights_id(model: Built, p: Parallel) -> str:
    """Collective. 16 hex digits of SHA-256 over every parameter's name, shape and bits, the same on every rank.

    Equal weights in another tensor- or pipeline-parallel layout have another name; the number of replicas and of
    context-parallel ranks does not matter.
    """
    mine = hashlib.sha256()
    for name, value in sorted(model.core.named_parameters()):
        mine.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        bits = value.detach().to("cpu").contiguous().view(torch.uint8)
        mine.update(bits.numpy().data)
    found: list[tuple[int, int, int, str]] = [(0, 0, 0, "")] * p.world
    copy = p.dp_rank + p.cp_rank  # 0 where nobody holds the same in front of it
    dist.all_gather_object(found, (copy, p.pp_rank, p.tp_rank, mine.hexdigest()), group=p.objects)
    shards = sorted(f[1:] for f in found if f[0] == 0)
    return hashlib.sha256(repr(shards).encode()).hexdigest()[:16]

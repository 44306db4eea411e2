"""A name for the policy's weights, by content: evaluations and exported models carry it, so that nobody mixes them up."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_mmsr1.megatron.model import Built
from megatron_mmsr1.megatron.parallel import Parallel


def weights_id(model: Built, p: Parallel) -> str:
    """Collective. 16 hex digits of SHA-256 over every parameter's name, shape and bits, the same on every rank.

    Equal weights in another layout of the model have another name; the number of replicas and context-parallel ranks does not
    matter.
    """
    mine, experts = hashlib.sha256(), hashlib.sha256()
    named = [(f"{i or ''}{name}", value) for i, core in enumerate(model.cores) for name, value in core.named_parameters()]
    for name, value in sorted(named):
        # megatron-core's mark of what is not the same on all data-parallel ranks: experts with a layout of their own.
        digest = mine if getattr(value, "allreduce", True) else experts
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        bits = value.detach().to("cpu").contiguous().view(torch.uint8)
        digest.update(bits.numpy().data)
    own = [(p.dp_rank + p.cp_rank, p.pp_rank, p.tp_rank, mine.hexdigest())]  # 0: the first that holds it
    if (p.expert_tensor, p.expert_parallel) != (p.tp_size, 1):
        place = parallel_state.get_expert_tensor_and_model_parallel_rank()
        own.append((parallel_state.get_expert_data_parallel_rank(), p.pp_rank, place, experts.hexdigest()))
    found: list[list[tuple[int, int, int, str]]] = [[]] * p.world
    dist.all_gather_object(found, own, group=p.objects)
    shards = sorted(f[1:] for kinds in found for f in kinds if f[0] == 0)
    return hashlib.sha256(repr(shards).encode()).hexdigest()[:16]

"""The exchange of tokens between ranks of experts on the CPU: what megatron-core's all-to-all dispatcher asks of a GPU and NCCL
and neither the CPU nor gloo gives."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def install() -> None:
    """Patch megatron-core's token dispatcher and its exchanges along the first dimension."""
    import megatron.core.tensor_parallel.mappings as core_mappings
    import megatron.core.transformer.moe.token_dispatcher as core_dispatcher

    dispatcher: Any = core_dispatcher
    mappings: Any = core_mappings
    dispatcher.maybe_move_tensor_to_cpu = _as_it_is
    even_gather, even_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather(x: Tensor, group: Any, sizes: list[int] | None = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return even_gather(x, group, sizes, use_global_buffer)
        return gather_uneven(x, group, sizes)

    def scatter(x: Tensor, group: Any, sizes: list[int] | None = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return even_scatter(x, group, sizes, use_global_buffer)
        return reduce_scatter_uneven(x, group, sizes)

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather, scatter


def _as_it_is(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """megatron-core reads the split sizes off a GPU as arrays, but leaves those on the CPU tensors, which torch's all-to-all
    does not take."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def gather_uneven(x: Tensor, group: Any, sizes: list[int]) -> Tensor:
    """The ranks' rows one behind the other, `sizes` of them; gloo gathers only as many from each."""
    most = max(sizes)
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


def reduce_scatter_uneven(x: Tensor, group: Any, sizes: list[int]) -> Tensor:
    """This rank's share of the sum over ranks, whose shares have `sizes` rows; gloo has no such exchange."""
    whole = x.clone()
    dist.all_reduce(whole, group=group)
    return whole.split(sizes)[group.rank()].clone()

"""What context-parallel ranks, each with a share of a pack's tokens, tell each other: keys and values, and scores.

Keys and values are exchanged whole: a rank holds those of all tokens while it works on a layer, which are few beside the rest
where heads share them (transformer-engine's attention passes them on in a ring instead). Scores are two numbers a token: every
rank has those of all tokens and computes the same loss, of any kind, whose gradient it takes for its own tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mmsr1.megatron.layout import Exchange


class _Whole(torch.autograd.Function):
    """This rank's rows [T / ranks, ...] -> the pack's [T, ...]; backwards the sum of all ranks' gradients at its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, group: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.exchange, ctx.group = exchange, group
        held = x.new_empty(len(exchange.held), *x.shape[1:])
        dist.all_gather_into_tensor(held, x.contiguous(), group=group)
        return held.index_select(0, exchange.order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        exchange: Exchange = ctx.exchange
        own = grad.new_empty(len(exchange.own), *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.index_select(0, exchange.held), group=ctx.group)
        return own, None, None


def of_all(key: Tensor, value: Tensor, exchange: Exchange, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values [T / ranks, groups, d] of this rank -> [T, groups, d] of all, in the pack's order. Collective, and so is
    its gradient."""
    both: Any = _Whole.apply(torch.cat([key, value], -1), exchange, group)
    return both.split([key.shape[-1], value.shape[-1]], -1)


class _Placed(torch.autograd.Function):
    """[k, n] at columns `at` of [k, total], where the other ranks' are; backwards those columns alone, since every rank goes on
    to compute the same from all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor, total: int, group: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(at)
        out = x.new_zeros(len(x), total).index_copy_(1, at, x)
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.index_select(1, ctx.saved_tensors[0]), None, None, None


def joined(x: Tensor, at: Tensor, total: int, group: dist.ProcessGroup) -> Tensor:
    """Every rank's x [k, n], which stands at columns `at` int64 [n], as one [k, total]; a column is one rank's. Collective."""
    out: Any = _Placed.apply(x, at, total, group)
    return out

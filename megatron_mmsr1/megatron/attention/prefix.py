"""Attention of a pack in which a run of tokens stands once for all sequences that begin with it, or of which a context-parallel
rank holds a share: exact, both ways.

A token attends to its own run, causally, and to every run above its own, whole. Each of these is an attention of its own, with
the logarithm L_i of its sums of exponentials beside its output O_i; together they are L = log(sum e^L_i) and
O = sum e^(L_i - L) O_i (as FlashAttention joins blocks, arXiv 2205.14135, section 3.1). Backwards each part is given O and L of
the whole, from which the formulas in `parts.py` make its own share of every gradient. No score is kept, and no
output of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_mmsr1.megatron.attention.parts import attend, gradients

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.layout import Packed

NEVER = 1e30  # the logarithm of a row in padding: e^(score - NEVER) is 0, and so is its share of every gradient


class PrefixAttention(torch.autograd.Function):
    """query [T, heads, d], key and value [T, groups, d], all of one layout, -> [T, heads, d]. Under context parallelism key and
    value are the whole pack's [T * ranks, groups, d], and so are their gradients: this rank's share of a sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Packed, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        padded = (q[layout.gather], k[layout.keys], v[layout.keys])
        parts = [attend(*x, causal=True, scale=scale) for x in _own(layout, *padded)]
        out = _end_to_end([o for o, _, _ in parts])[layout.slots].float()
        lse = _end_to_end([x[..., None] for _, x, _ in parts])[layout.slots]
        kept = [x for *_, x in parts]
        for rows, keys in _above(layout):
            o, x, more = attend(_one(q[rows]), _one(k[keys]), _one(v[keys]), causal=False, scale=scale)
            kept.append(more)
            part = x[0].T[..., None]
            both = torch.logaddexp(lse[rows], part)
            out[rows] = out[rows] * (lse[rows] - both).exp() + o[0].transpose(0, 1) * (part - both).exp()
            lse[rows] = both
        whole = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, whole, lse)
        ctx.layout, ctx.scale, ctx.kept = layout, scale, kept
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        layout: Packed = ctx.layout
        never = lse.new_full((len(layout.gather), *lse.shape[1:]), NEVER)
        do, a, o = (t[layout.gather] for t in (grad, q, out))
        padded = (do, a, k[layout.keys], v[layout.keys], o, never.index_copy_(0, layout.slots, lse))
        kept = iter(ctx.kept)
        parts = [
            gradients(do, a, b, c, o, x.squeeze(-1).contiguous(), next(kept), causal=True, scale=ctx.scale)
            for do, a, b, c, o, x in _own(layout, *padded)
        ]
        dq, dk, dv = (_end_to_end(x)[layout.slots].float() for x in zip(*parts, strict=True))
        if layout.exchange is not None:
            own = layout.exchange.own
            dk, dv = (x.new_zeros(len(k), *x.shape[1:]).index_copy_(0, own, x) for x in (dk, dv))
        for rows, keys in _above(layout):
            do, a, o = (_one(t[rows]) for t in (grad, q, out))
            b, c = (_one(t[keys]) for t in (k, v))
            x = lse[rows].squeeze(-1).T[None].contiguous()
            to_q, to_k, to_v = gradients(do, a, b, c, o, x, next(kept), causal=False, scale=ctx.scale)
            dq[rows] += to_q[0].transpose(0, 1)
            dk[keys] += to_k[0].transpose(0, 1)
            dv[keys] += to_v[0].transpose(0, 1)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _own(layout: Packed, *padded: Tensor) -> Iterator[list[Tensor]]:
    """Of each padded batch: [S, heads, d] -> [runs, heads, longest, d]."""
    at = 0
    for n, longest in layout.batches:
        yield [x[at : at + n * longest].unflatten(0, (n, longest)).transpose(1, 2) for x in padded]
        at += n * longest


def _end_to_end(batches: Sequence[Tensor]) -> Tensor:
    """[runs, heads, longest, d] each -> [S, heads, d]."""
    return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in batches])


def _above(layout: Packed) -> Iterator[tuple[slice, slice]]:
    """(rows, keys): rows that attend to all of these keys, which stand above or before them."""
    for q0, q1, k0, k1 in layout.below:
        yield slice(q0, q1), slice(k0, k1)


def _one(x: Tensor) -> Tensor:
    """[n, heads, d] -> [1, heads, n, d]."""
    return x.transpose(0, 1)[None]

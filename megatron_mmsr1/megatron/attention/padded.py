"""torch's scaled_dot_product_attention over padded batches of runs of similar length (`layout.packed`), by whichever kernel
torch takes: on a CPU its own, on CUDA perhaps one that writes all scores out. Runs that stand once for several sequences, and
shares of a pack, are attended to piece by piece (`prefix.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_mmsr1.megatron.attention.kernel import Kernel
from megatron_mmsr1.megatron.attention.prefix import PrefixAttention

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.layout import Packed


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """As `kernel.Attend`, of any layout."""
    if layout.below or layout.exchange is not None:
        shared: Any = PrefixAttention.apply(query, key, value, layout, scale)
        return shared.flatten(1)
    padded: list[Any] = [_Pad.apply(x.flatten(1), layout.gather, layout.slots) for x in (query, key, value)]
    parts, at = [], 0
    for n, longest in layout.batches:
        q, k, v = (x[at : at + n * longest].view(n, longest, -1, query.shape[-1]).transpose(1, 2) for x in padded)
        # Padding stands after the tokens of its sequence, where the causal mask hides it from all of them.
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(o.transpose(1, 2).reshape(n * longest, -1))
        at += n * longest
    out: Any = _Unpad.apply(torch.cat(parts), layout.slots)
    return out


class _Pad(torch.autograd.Function):
    """[T, w] -> [S, w], the padded batches end to end. What stands in padding is arbitrary and takes no gradient, which makes
    the backward pass a selection where autograd's own would be a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, slots: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(slots)
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """[S, w] -> [T, w]: back to the pack."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(slots)
        ctx.rows = x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


KERNEL = Kernel("padded", "torch's scaled_dot_product_attention over padded batches", lambda s: [], attend)

"""torch's attention over packed sequences (torch.nn.attention.varlen): FlashAttention, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megatron_mmsr1.megatron.attention.kernel import (
    Kernel,
    Situation,
    needs_gpu,
    needs_half,
    needs_head,
    needs_whole_sequences,
)

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.layout import Packed

CAUSAL = (-1, 0)  # the window: everything before a token, nothing after it


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """As `kernel.Attend`. TypeError for a pack whose sequences do not stand whole in it, of which it would see pieces."""
    from torch.nn.attention.varlen import varlen_attn

    if layout.below or layout.exchange is not None:
        raise TypeError("varlen attends to whole sequences")
    bounds, longest = layout.cu_seqlens_q, layout.max_seqlen_q
    twice: Any = (bounds, bounds, longest, longest)
    out: Any = varlen_attn(query, key, value, *twice, scale=scale, window_size=CAUSAL, enable_gqa=True)
    return out.flatten(1)


def _lacks(s: Situation) -> Iterator[str]:
    yield from needs_gpu(s)
    if not s.varlen:
        yield "this torch has no torch.nn.attention.varlen with windows and grouped heads"
    yield from needs_half(s)
    yield from needs_head(s, 256)
    yield from needs_whole_sequences(s)


KERNEL = Kernel("varlen", "torch's varlen_attn", lambda s: list(_lacks(s)), attend)

"""torch's FlashAttention over padded batches, and no other kernel: a shape that it does not take is an error, never a slow
attention. Shared prefixes and shares of a pack are attended to by the same kernel, piece by piece (`parts.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_mmsr1.megatron.attention import padded
from megatron_mmsr1.megatron.attention.kernel import Kernel, Situation, needs_gpu, needs_half, needs_head

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.layout import Packed


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """As `kernel.Attend`, of any layout. Raises RuntimeError where the kernel does not take the shape."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return padded.attend(query, key, value, layout, scale)


def _lacks(s: Situation) -> Iterator[str]:
    yield from needs_gpu(s)
    if not s.flash:
        yield "this torch was built without FlashAttention"
    yield from needs_half(s)
    yield from needs_head(s, 256)


KERNEL = Kernel("flash", "torch's FlashAttention over padded batches", lambda s: list(_lacks(s)), attend)

"""cuDNN's attention over padded batches, and no other kernel: a shape that it does not take is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_mmsr1.megatron.attention import padded
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


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """As `kernel.Attend`, of sequences whole in the pack. Raises RuntimeError where cuDNN does not take the shape."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return padded.attend(query, key, value, layout, scale)


def _lacks(s: Situation) -> Iterator[str]:
    yield from needs_gpu(s)
    if not s.cudnn:
        yield "this torch has no cuDNN"
    yield from needs_half(s)
    yield from needs_head(s, 128)
    yield from needs_whole_sequences(s)


KERNEL = Kernel("cudnn", "cuDNN's attention over padded batches", lambda s: list(_lacks(s)), attend)

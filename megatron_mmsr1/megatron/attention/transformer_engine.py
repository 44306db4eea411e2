"""transformer-engine's attention: megatron-core's layer around it takes packs as they are, and passes keys on in a ring under
context parallelism. Kernels: its own choice of FlashAttention and cuDNN's."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_mmsr1.megatron.attention.kernel import Kernel, Situation, needs_gpu, needs_half


def _lacks(s: Situation) -> Iterator[str]:
    if not s.transformer_engine:
        yield "not installed"
    yield from needs_gpu(s)
    yield from needs_half(s)
    if s.shared_prefixes:
        yield "it knows no shared prefixes (megatron.share_prefixes)"


KERNEL = Kernel("transformer-engine", "transformer-engine's own layer", lambda s: list(_lacks(s)), None)

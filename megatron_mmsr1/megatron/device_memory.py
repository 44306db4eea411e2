"""The trainer's memory on its device, given to engines that stand there while they generate, and taken back, to the byte.

megatron-core 0.19 moves gradients and optimizer states too, but not the weights of a plain optimizer, a reference or cached
features. Here every storage is emptied in place: whatever is a view of it (a parameter, a bucket, a shard) stays a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_mmsr1.megatron import platform

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.model import Built

ALIGN = 64  # bytes between the beginnings of two storages are a multiple of this


class DeviceMemory:
    """`held`: the bytes of what was released and not restored."""

    def __init__(self) -> None:
        self.held = 0
        self._block = torch.empty(0, dtype=torch.uint8)  # host memory, page-locked where there is a GPU, kept for the next time
        self._kept: list[tuple[torch.UntypedStorage, int]] = []  # of each its bytes, in the order that they lie in the block
        self._zero: list[tuple[torch.UntypedStorage, int]] = []
        self._seen: set[int] = set()

    def release(self, kept: Iterable[Tensor], zero: Iterable[Tensor] = (), but: Iterable[Tensor] = ()) -> None:
        """Empty the storages of these: `kept` come back as they are, `zero` come back as zeros, what is in both is kept. Left
        alone is what lies elsewhere than on the device, was released already or is a view of one of `but`; and, on a CPU, a
        frozen weight that is still its file's, mapped into memory."""
        left = {t.untyped_storage()._cdata for t in but}
        storages = [*self._new(kept, left)]
        start = sum(_aligned(n) for _, n in self._kept)
        needed = start + sum(_aligned(n) for _, n in storages)
        if self._block.numel() < needed:
            block = torch.empty(needed, dtype=torch.uint8, pin_memory=platform.has_cuda())
            block[:start].copy_(self._block[:start])
            self._block = block
        for storage, size in storages:
            self._block[start : start + size].copy_(_bytes(storage), non_blocking=True)
            start += _aligned(size)
        platform.synchronize()
        self._kept += storages
        emptied = [*self._new(zero, left)]
        self._zero += emptied
        for storage, size in (*storages, *emptied):
            storage.resize_(0)
            self.held += size
        platform.give_back_cache()

    def restore(self) -> None:
        """Everything that was released. Nothing, where nothing was."""
        start = 0
        for storage, size in self._kept:
            storage.resize_(size)
            _bytes(storage).copy_(self._block[start : start + size], non_blocking=True)
            start += _aligned(size)
        for storage, size in self._zero:
            storage.resize_(size)
            _bytes(storage).zero_()
        platform.synchronize()
        self._kept, self._zero, self.held = [], [], 0
        self._seen = set()

    def _new(self, tensors: Iterable[Tensor], left: set[int]) -> Iterator[tuple[torch.UntypedStorage, int]]:
        device = platform.device()
        for t in tensors:
            storage = t.untyped_storage()
            if storage._cdata in self._seen or storage._cdata in left:
                continue
            if t.device == device and storage.nbytes() and storage.resizable():
                self._seen.add(storage._cdata)
                yield storage, storage.nbytes()


def weights_of(model: Built) -> Iterator[Tensor]:
    """Parameters and buffers."""
    for core in model.cores:
        yield from (p.data for p in core.parameters())
        yield from core.buffers()


def gradients_of(model: Built) -> Iterator[Tensor]:
    """What megatron-core sums gradients in, of a trainable model. Nothing between steps needs what stands there."""
    for chunk in model.chunks:
        yield from (b.grad_data for b in chunk.buffers + chunk.expert_parallel_buffers)


def states_of(optimizer: Any) -> Iterator[Tensor]:
    """Moments and float32 weights of megatron-core's optimizer. The latter may be the model's own."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        yield from (p.data for group in inner.param_groups for p in group["params"])
        yield from (x for state in inner.state.values() for x in state.values() if isinstance(x, Tensor))


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN

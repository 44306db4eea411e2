"""What a process holds in tensors: every storage that an operator gives out, from then until it is released, forwards and
backwards.

What a kernel takes and gives back inside of itself is not seen, nor are buffers of gloo.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Bytes `held` now, and the `most` in each phase that was entered; "" is what stands outside of all."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.phase = 0, ""
        self.most: dict[str, int] = {}
        self._known: dict[int, int] = {}  # of each storage by its address: its bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._take(x.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            weakref.finalize(storage, self._give_back, key)
            self._known[key] = 0
        self.held += size - self._known[key]
        self._known[key] = size
        self.most[self.phase] = max(self.most.get(self.phase, 0), self.held)

    def _give_back(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        outer, self.phase = self.phase, phase
        self.most[phase] = max(self.most.get(phase, 0), self.held)
        try:
            yield
        finally:
            self.phase = outer

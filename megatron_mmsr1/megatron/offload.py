"""`megatron.offload.activations`: the inputs of decoder layers, which are all that full recompute keeps, in the host's memory
from the forward to the backward pass.

megatron-core's own offloading of activations is not used: it remembers how many micro-batches its first step had, and steps
here differ in that. Copies are made in the compute stream, from and to pinned memory; nothing hides them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.megatron import platform


def install(decoder: Any, hidden: int) -> None:
    """Let what the recomputed layers of megatron-core's decoder save of hidden states, [T, 1, hidden], wait on the host."""
    forward, in_layers = decoder.forward, False

    def pack(x: Tensor) -> Tensor | tuple[Tensor, torch.device]:
        # Angles and DeepStack's features are the same for many layers.
        whole = in_layers and x.dim() == 3 and x.shape[1:] == (1, hidden)
        return (to_host(x), x.device) if whole else x

    def unpack(kept: Tensor | tuple[Tensor, torch.device]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0].to(kept[1], non_blocking=True)

    def leave(*_: Any) -> None:
        nonlocal in_layers
        in_layers = False

    def offloaded(*args: Any, **kwargs: Any) -> Any:
        nonlocal in_layers
        in_layers = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                return forward(*args, **kwargs)
        finally:
            leave()

    decoder.forward = offloaded
    if decoder.final_layernorm is not None:  # what it keeps is wanted at once
        decoder.final_layernorm.register_forward_pre_hook(leave)


def to_host(x: Tensor) -> Tensor:
    """A copy in the host's memory, pinned where there is a GPU."""
    return torch.empty_like(x, device="cpu", pin_memory=platform.has_cuda()).copy_(x, non_blocking=True)

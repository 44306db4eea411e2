"""DeepStack (arXiv 2406.04334): features of the tower's inner layers, added to what the first decoder layers give.

They travel as the decoder's `context` (what cross-attention would attend to, had these layers any), because megatron-core
hands that to each layer and through activation recompute with its gradients; a hook on the layer adds them.
"""

# pyright: standard
# megatron.core has no types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor, nn


def install(layers: Sequence[nn.Module]) -> None:
    """Let the n-th of these decoder layers add the n-th of the features in its `context`, and the last of them drop it."""

    def hook(at: int) -> Any:
        return lambda module, args, kwargs, out: _add(at, out, kwargs["context_mask"], last=at == len(layers) - 1)

    for n, layer in enumerate(layers):
        layer.register_forward_hook(hook(n), with_kwargs=True)


def arguments(
    features: Tensor, positions: Tensor, *, tokens: int, tp_rank: int, tp_size: int, split: bool
) -> dict[str, Tensor]:
    """What `install`'s hooks read, as arguments of the decoder. features [N, D, H] of D layers stand at positions int64 [N] of
    `tokens`; `split`: this rank holds its share of the tokens (sequence parallelism)."""
    if split:
        # Each rank adds to its own tokens and sees their gradients alone, but the tower wants those of all.
        features = copy_to_tensor_model_parallel_region(features)
        share = tokens // tp_size
        positions = positions - tp_rank * share
        inside = (positions >= 0) & (positions < share)
        # Those of other ranks add zero to some token here: to select would wait for the device to tell how many there are.
        features = features * inside[:, None, None].to(features.dtype)
        positions = positions.clamp(0, share - 1)
    return {"context": features, "context_mask": positions}


def _add(at: int, out: tuple[Tensor, Tensor | None], positions: Tensor | None, *, last: bool) -> tuple[Tensor, Tensor | None]:
    hidden, features = out  # [T, 1, H], [N, D, H]
    if features is None or positions is None:
        return out
    values = features[:, at].unsqueeze(1).to(hidden.dtype)
    return torch.index_add(hidden, 0, positions, values), None if last else features

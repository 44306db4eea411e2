"""The attention layer that megatron-core builds into a model, whichever kernel attends."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from megatron_mmsr1.megatron.attention.choice import KERNELS
from megatron_mmsr1.megatron.context_parallel import of_all
from megatron_mmsr1.megatron.layout import Packed


class PackedAttention(torch.nn.Module):
    """Causal attention inside each sequence of a pack by the kernel of this name (`choice.KERNELS`)."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        kernel: str = "padded",
        **_: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.sharers: Any = getattr(pg_collection, "cp", None)  # the ranks that hold a pack together
        self.kernel = kernel

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """query [T, heads, d], key and value [T, groups, d], all of this rank's tokens, -> [T, heads * d]. Raises TypeError
        without a `Packed` layout."""
        layout = packed_seq_params
        if not isinstance(layout, Packed):
            raise TypeError("PackedAttention needs sequences packed by layout.packed")
        if layout.exchange is not None:
            key, value = of_all(key, value, layout.exchange, self.sharers)
        attend = KERNELS[self.kernel].attend
        assert attend is not None, self.kernel
        return attend(query, key, value, layout, self.scale or 1 / math.sqrt(query.shape[-1]))


def with_kernel(spec: Any, kernel: str) -> Callable[..., Any]:
    """The same layers, transformer-engine's say, with this attention. `spec`: as megatron-bridge has it, of a layer, of a block
    or a function of the model's description that gives one."""

    makes = callable(spec) and not isinstance(spec, ModuleSpec)
    staged = makes and "vp_stage" in inspect.signature(spec).parameters

    def made(config: Any, vp_stage: int | None = None) -> Any:
        found = spec if not makes else spec(config, vp_stage=vp_stage) if staged else spec(config)
        for layer in getattr(found, "layer_specs", [found]):
            layer.submodules.self_attention.submodules.core_attention = partial(PackedAttention, kernel=kernel)
        return found

    return made

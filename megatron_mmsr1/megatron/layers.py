"""The layers that megatron-core's local spec (the one without transformer-engine) lacks, on CPU and on CUDA alike.

`RMSNorm` works under sequence parallelism; `PackedAttention` works on packed (THD) sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from megatron_mmsr1.megatron.context_parallel import of_all
from megatron_mmsr1.megatron.layout import Packed
from megatron_mmsr1.megatron.prefix_attention import PrefixAttention


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm whose weight takes part in sequence parallelism's gradient sum."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # finalize_model_grads sums gradients of parameters that carry this mark over the tensor-parallel group.
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class PackedAttention(torch.nn.Module):
    """Causal attention inside each sequence of a pack, by torch's scaled_dot_product_attention over padded batches."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.sharers: Any = getattr(pg_collection, "cp", None)  # the ranks that hold a pack together

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
        if layout.below or layout.exchange is not None:
            scale = self.scale if self.scale is not None else query.shape[-1] ** -0.5
            shared: Any = PrefixAttention.apply(query, key, value, layout, scale)
            return shared.flatten(1)
        padded: list[Any] = [_Pad.apply(x.flatten(1), layout.gather, layout.slots) for x in (query, key, value)]
        parts, at = [], 0
        for n, longest in layout.batches:
            q, k, v = (x[at : at + n * longest].view(n, longest, -1, query.shape[-1]).transpose(1, 2) for x in padded)
            # Padding stands after the tokens of its sequence, where the causal mask hides it from all of them.
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
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


def local_block(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """megatron-core's local decoder with the two layers above in their places."""
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, normalization="RMSNorm", qk_layernorm=config.qk_layernorm
    )
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    _attend(layer)
    if config.qk_layernorm:
        attention = parts.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=RMSNorm
    )


def with_packed_attention(spec: Any) -> Callable[..., Any]:
    """The same layers, transformer-engine's say, with this attention, which alone knows runs that stand once. `spec`: as
    megatron-bridge has it, of a layer, of a block or a function of the model's description that gives one."""

    def chosen(config: Any, **options: Any) -> Any:
        made = spec(config, **options) if callable(spec) else spec
        for layer in getattr(made, "layer_specs", [made]):
            _attend(layer)
        return made

    return chosen


def _attend(layer: Any) -> None:
    layer.submodules.self_attention.submodules.core_attention = PackedAttention

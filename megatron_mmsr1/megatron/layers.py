"""The layers that megatron-core's local spec (the one without transformer-engine) lacks, on CPU and on CUDA alike.

`RMSNorm` works under sequence parallelism; `PackedAttention` works on packed (THD) sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor


@dataclass
class Packed(PackedSeqParams):
    """Packed sequences plus where each token stands in padded batches, worked out once and used by every layer.

    `buckets` holds, a batch of sequences of similar length: (slots int64 [t], tokens int64 [t], sequences, longest). Token
    `tokens[i]` of the pack stands at `slots[i]` of the flattened [sequences * longest] batch.
    """

    buckets: tuple[tuple[Tensor, Tensor, int, int], ...] = ()


def packed(lengths: list[int], *, device: torch.device) -> Packed:
    """The layout of sequences of these lengths, laid end to end."""
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    bounds[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
    longest = max(lengths)
    bounds = bounds.to(device)
    # One sequence for the rotary embedding, whose angles are per token here: it would loop over the sequences otherwise.
    whole = torch.tensor([0, sum(lengths)], dtype=torch.int32)
    return Packed(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=whole,
        cu_seqlens_kv_padded=whole,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        buckets=tuple(_bucket(members, lengths, device) for members in _by_length(lengths)),
    )


def _by_length(lengths: list[int]) -> list[list[int]]:
    """Sequences in batches, longest first, each padded by at most a quarter of the longest (and 32 tokens at the least):
    attention costs the square of the padded length, and a batch costs a few kernel calls."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] >= min(lengths[groups[-1][0]] * 3 // 4, lengths[groups[-1][0]] - 32):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _bucket(members: list[int], lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    starts = [0]
    for n in lengths:
        starts.append(starts[-1] + n)
    longest = lengths[members[0]]
    slots = torch.cat([torch.arange(lengths[i]) + k * longest for k, i in enumerate(members)])
    tokens = torch.cat([torch.arange(lengths[i]) + starts[i] for i in members])
    return slots.to(device), tokens.to(device), len(members), longest


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
        **_: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale

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
        """query [T, heads, d], key and value [T, groups, d] -> [T, heads * d]. Raises TypeError without a `Packed` layout."""
        if not isinstance(packed_seq_params, Packed):
            raise TypeError("PackedAttention needs sequences packed by layers.packed")
        t, heads, d = query.shape
        repeats = heads // key.shape[1]
        if repeats > 1:  # torch's CPU kernel for grouped queries is the slow one
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        qkv = torch.stack([query, key, value]).view(3, t, heads * d)
        out = _attend(qkv, packed_seq_params.buckets, heads, self.scale)
        return out


def _attend(qkv: Tensor, buckets: tuple[tuple[Tensor, Tensor, int, int], ...], heads: int, scale: float | None) -> Tensor:
    """[3, T, heads * d] -> [T, heads * d]."""
    _, t, width = qkv.shape
    parts, order = [], []
    for slots, tokens, n, longest in buckets:
        batch = qkv.new_zeros(3, n * longest, width).index_copy(1, slots, qkv.index_select(1, tokens))
        # Padding stands after the tokens of its sequence, where the causal mask hides it from all of them.
        q, k, v = batch.view(3, n, longest, heads, width // heads).transpose(2, 3).unbind(0)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        parts.append(o.transpose(1, 2).reshape(n * longest, width).index_select(0, slots))
        order.append(tokens)
    return qkv.new_empty(t, width).index_copy(0, torch.cat(order), torch.cat(parts))


def local_block(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """megatron-core's local decoder with the two layers above in their places."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.submodules.core_attention = PackedAttention
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=RMSNorm
    )

"""One attention with the logarithms of its sums of exponentials, and its gradients from an output and logarithms given.

Shapes: query and output [B, heads, n, d], key and value [B, groups, m, d] with heads a multiple of groups, logarithms float32
[B, heads, n]. `causal`: n equals m, and row i sees the keys as far as i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """(output, logarithms, what `gradients` wants to be given back)."""
    if _on_cpu(q):
        return *aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale), ()
    if _flash(q):
        out, lse, *kept, _ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse, tuple(kept)
    scores = _scores(q, k, causal, scale)
    lse = scores.logsumexp(-1)
    out = _per_group((scores - lse[..., None]).exp(), k) @ v.float()[:, :, None]
    return out.flatten(1, 2).to(q.dtype), lse, ()


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    kept: tuple[Any, ...],
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v, for the gradient of `out`: with p = e^(scale q k' - lse), dv = p' grad and
    ds = p * (grad v' - sum(grad * out)), dq = scale ds k, dk = scale ds' q. `out` and `lse` may be of more keys than these."""
    if _on_cpu(q):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
    if _flash(q):
        *bounds, seed, offset = kept
        return aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, *bounds, 0.0, causal, seed, offset, scale=scale
        )
    p = _per_group((_scores(q, k, causal, scale) - lse[..., None]).exp(), k)
    do, rows, keys, values = _per_group(grad.float(), k), _per_group(q.float(), k), k.float()[:, :, None], v.float()[:, :, None]
    d = (grad.float() * out.float()).sum(-1, keepdim=True)
    ds = p * (do @ values.mT - _per_group(d, k)) * scale
    dq = (ds @ keys).flatten(1, 2)
    dk, dv = ((x.mT @ y).sum(2) for x, y in ((ds, rows), (p, do)))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _on_cpu(q: Tensor) -> bool:
    return q.device.type == "cpu"


def _flash(q: Tensor) -> bool:
    """Whether CUDA's flash kernel takes it; in float32, which is for comparisons, the scores are written out."""
    return q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """scale q k', float32 [B, heads, n, m]; -inf at what a row does not see."""
    scores = (_per_group(q.float(), k) @ k.float()[:, :, None].mT).flatten(1, 2) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _per_group(x: Tensor, k: Tensor) -> Tensor:
    """[B, heads, n, d] -> [B, groups, heads a group, n, d]."""
    return x.unflatten(1, (k.shape[1], -1))

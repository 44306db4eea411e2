"""Rotary embedding of packed sequences from angles that are given per token.

megatron-core's own path for packed sequences loops over them and reads each length from the device; its fused kernel numbers
the tokens of each sequence itself, which loses the three rows of multimodal positions. This takes the fused kernel's place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.procs import patches


class _Rotate(torch.autograd.Function):
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the halves of the last dimension; backwards the rotation by -angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = x * cos
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return out


def apply_packed(t: Tensor, cu_seqlens: Tensor, freqs: Tensor, **_: Any) -> Tensor:
    """t [T, heads, d] rotated by the angles freqs [T, 1, 1, d], whose halves are equal; the signature of the fused kernel."""
    cached = getattr(freqs, "cos_sin", None)  # once a micro-batch, not once a layer, query and key
    if cached is None or cached[0].dtype != t.dtype:
        angles = freqs.squeeze(1)
        cached = (angles.cos().to(t.dtype), angles[..., : angles.shape[-1] // 2].sin().to(t.dtype))
        freqs.cos_sin = cached  # pyright: ignore[reportAttributeAccessIssue]
    rotated: Any = _Rotate.apply(t, *cached)
    return rotated


def install() -> None:
    """Let megatron-core find `apply_packed` where it looks for the fused kernel; `config.apply_rope_fusion` turns it on."""
    patches.check("packed-rope")
    from megatron.core.models.common.embeddings import rope_utils

    utils: Any = rope_utils
    utils.fused_apply_rotary_pos_emb_thd = apply_packed

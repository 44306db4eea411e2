"""Log-probabilities and entropies of given tokens from hidden states, over a vocabulary split across tensor-parallel ranks.

The output projection is part of the operation, forwards and backwards, so that logits exist for one chunk of tokens at a time
and are never kept: backward computes them again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

BANNED = -1e30  # finite, so that 0 * logit stays 0


class TokenHead:
    """What the last pipeline stage does with its hidden states: see `__call__`.

    `rows` int64 [N] are the tokens whose *next* token is wanted, `targets` int64 [N] those next tokens, `banned` the ids that
    take no part in the normaliser, `chunk` the number of tokens whose logits exist at a time. Without `entropy_gradient` the
    entropy is told only, which spares the backward pass its terms.
    """

    def __init__(
        self,
        rows: Tensor,
        targets: Tensor,
        *,
        banned: list[int],
        temperature: float,
        chunk: int,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        entropy_gradient: bool = True,
    ) -> None:
        self.rows, self.targets, self.banned = rows, targets, banned
        self.entropy_gradient = entropy_gradient
        self.temperature, self.chunk = temperature, chunk
        self.group, self.sequence_parallel = group, sequence_parallel

    def __call__(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden [T, 1, H] (or this rank's T / tp rows of it), weight [V / tp, H] -> float32 [2, N]: log-prob, entropy."""
        h = select_rows(hidden, self.rows, self.group, self.sequence_parallel)
        first = dist.get_rank(self.group) * weight.shape[0]
        local = [i - first for i in self.banned if first <= i < first + weight.shape[0]]
        banned = torch.tensor(local, dtype=torch.int64, device=weight.device)
        settings = (self.temperature, self.chunk, self.group, self.entropy_gradient)
        out: Any = _LinearLogProb.apply(h, weight, self.targets - first, banned, *settings)
        return torch.stack(out)


class LogitsHead:
    """Plain logits of all tokens, float32 [T, V] on every tensor rank; for tests and inspection only."""

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        self.group, self.sequence_parallel = group, sequence_parallel

    def __call__(self, hidden: Tensor, weight: Tensor) -> Tensor:
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.group)
        local = (hidden.squeeze(1) @ weight.T).float()
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, local.contiguous(), group=self.group)
        return torch.cat(parts, -1)


def select_rows(hidden: Tensor, rows: Tensor, group: dist.ProcessGroup, sequence_parallel: bool) -> Tensor:
    """hidden [T, 1, H] -> [N, H]. Each tensor rank computes with its slice of the vocabulary, so the gradient is summed over
    them on its way back."""
    if sequence_parallel:
        return gather_from_sequence_parallel_region(hidden, group=group).squeeze(1).index_select(0, rows)
    return copy_to_tensor_model_parallel_region(hidden.squeeze(1).index_select(0, rows), group=group)


class _LinearLogProb(torch.autograd.Function):
    """For hidden h [N, H], this rank's rows W [v, H] of the output layer and z = h W^T / temperature (banned ids at -inf):
    log-prob = z[target] - logsumexp(z); entropy = logsumexp(z) - sum(softmax(z) * z); both float32 [N].

    `targets` count from this rank's first vocabulary row; those outside [0, v) are another rank's.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        targets: Tensor,
        banned: Tensor,
        temperature: float,
        chunk: int,
        group: Any,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        n, size = h.shape[0], weight.shape[0]
        # Rows: this rank's largest logit m, its sum of e^(z-m), its sum of (z-m) e^(z-m), its target logit.
        mine = h.new_empty(4, n, dtype=torch.float32)
        for a in range(0, n, chunk):
            s = slice(a, a + chunk)
            z = _logits(h[s], weight, banned, temperature)
            top = z.amax(-1)
            z -= top[:, None]
            e = z.exp()
            local = targets[s]
            here = (local >= 0) & (local < size)
            own = z.gather(1, local.clamp(0, size - 1)[:, None]).squeeze(1) + top
            mine[:, s] = torch.stack([top, e.sum(-1), torch.linalg.vecdot(e, z), torch.where(here, own, 0.0)])
        top, lse, mean, own = _combine(mine, group)
        ctx.save_for_backward(h, weight, targets, banned, top, lse, mean)
        ctx.temperature, ctx.chunk, ctx.entropy_gradient = temperature, chunk, entropy_gradient
        entropy = lse - mean
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return own - top - lse, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, targets, banned, top, lse, mean = ctx.saved_tensors
        to_logprob, to_entropy = (g.float() for g in grads)
        size = weight.shape[0]
        dh = torch.empty_like(h)
        dw = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for a in range(0, h.shape[0], ctx.chunk):
            s = slice(a, a + ctx.chunk)
            z = _logits(h[s], weight, banned, ctx.temperature).sub_(top[s][:, None])
            g = -to_logprob[s][:, None]
            if ctx.entropy_gradient:
                # d entropy / d z_j = -p_j (z_j - sum(p z))
                g = g - to_entropy[s][:, None] * (z - mean[s][:, None])
            dz = z.sub_(lse[s][:, None]).exp_().mul_(g)
            local = targets[s]
            here = (local >= 0) & (local < size)
            dz.scatter_add_(1, local.clamp(0, size - 1)[:, None], torch.where(here, to_logprob[s], 0.0)[:, None])
            dz = dz.div_(ctx.temperature).to(weight.dtype)
            dh[s] = dz @ weight
            if dw is not None and dw.dtype == dz.dtype:
                dw.addmm_(dz.T, h[s])  # no second [v, H]
            elif dw is not None:
                dw += dz.T @ h[s]
        return dh, None if dw is None else dw.to(weight.dtype), None, None, None, None, None, None


def _logits(h: Tensor, weight: Tensor, banned: Tensor, temperature: float) -> Tensor:
    z = (h @ weight.T).float()
    if temperature != 1.0:
        z = z / temperature
    return z.index_fill_(1, banned, BANNED)


def _combine(mine: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(largest logit, logsumexp above it, expected logit above it, target logit), each [N], from every rank's share [4, N], in
    one exchange. All but the first are relative to the largest: float32 would lose the entropy of a sure token otherwise."""
    if dist.get_world_size(group) == 1:
        shares = mine[None]
    else:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, mine, group=group)
        shares = torch.stack(parts)
    tops, totals, weighted, own = shares.unbind(1)  # each [ranks, N]
    top = tops.amax(0)
    below = tops - top
    total = (below.exp() * totals).sum(0)
    mean = (below.exp() * (weighted + below * totals)).sum(0) / total
    return top, total.log(), mean, own.sum(0)

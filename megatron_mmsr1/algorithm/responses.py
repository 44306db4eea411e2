"""Responses that lie end to end: T tokens, bounds `cu_seqlens` int [S + 1]."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor


def owner(cu_seqlens: Tensor) -> Tensor:
    """int64 [T]: the response of each token."""
    lengths = cu_seqlens.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def sums(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[S]: the sum over each response's tokens, in the values' dtype; differentiable."""
    return values.new_zeros(len(cu_seqlens) - 1).index_add(0, owner(cu_seqlens), values)


def means(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[S]: the mean over each response's tokens; 0 for a response without tokens."""
    return sums(values, cu_seqlens) / cu_seqlens.diff().clamp(min=1).to(values.dtype)


def group_index(group_ids: Tensor | Sequence[Hashable]) -> Tensor:
    """int64 [N]: ids renumbered from 0."""
    if isinstance(group_ids, Tensor):
        return cast(Tensor, torch.unique(group_ids, return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType]
    number: dict[Hashable, int] = {}
    return torch.tensor([number.setdefault(g, len(number)) for g in group_ids], dtype=torch.int64)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, limit: float = 20.0) -> Tensor:
    """float32 [T]: logprobs - old_logprobs within +-limit, beyond which there is no gradient; none flows to `old_logprobs`.

    e**20 = 4.9e8 is finite in float32 and far beyond any ratio worth an update; a log-prob of minus infinity gives a limit.
    """
    return (logprobs.float() - old_logprobs.detach().float()).clamp(-limit, limit)


def later(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[T]: the sum of each token's value and those after it in its response."""
    before = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return before[cu_seqlens[1:]][owner(cu_seqlens)] - before[:-1]


def split(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The values [T] of each response, views."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return [values[a:b] for a, b in itertools.pairwise(ends)]

"""Rewards of a batch of rollouts and the groups that they come in; what advantage estimators are written with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.responses import group_index


class Groups:
    """N rewards, float64, with their groups in any order. Every statistic is [N]: that of a member's own group.

    Raises ValueError if the lengths differ or a reward is not finite: a rollout without a reward belongs in no group.
    """

    def __init__(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> None:
        r = torch.as_tensor(rewards, dtype=torch.float64).detach()
        index = group_index(group_ids).to(r.device)
        if r.ndim != 1 or r.shape != index.shape:
            raise ValueError(f"rewards {tuple(r.shape)} and group ids {tuple(index.shape)} must be equally long vectors")
        if not bool(torch.isfinite(r).all()):
            raise ValueError(f"reward {int((~torch.isfinite(r)).nonzero()[0])} is not finite: leave unscored rollouts out")
        self.rewards, self.index = r, index
        self.count = int(index.max()) + 1 if len(index) else 0
        self.size = self.sum(torch.ones_like(r))
        self.mean = self.sum(r) / self.size

    def sum(self, values: Tensor) -> Tensor:
        """Of the values of the group's members."""
        return self.rewards.new_zeros(self.count).index_add_(0, self.index, values)[self.index]

    @cached_property
    def centred(self) -> Tensor:
        """The reward less its group's mean; exactly 0 in a group of one and in one of equal rewards, whose mean may differ from
        them in the last bit."""
        low = self.rewards.new_full((self.count,), torch.inf).scatter_reduce_(0, self.index, self.rewards, "amin")
        high = self.rewards.new_full((self.count,), -torch.inf).scatter_reduce_(0, self.index, self.rewards, "amax")
        return torch.where((low == high)[self.index], 0.0, self.rewards - self.mean)

    @cached_property
    def std(self) -> Tensor:
        """The sample's deviation (divisor n - 1), as in verl and TRL; 0 in a group of one."""
        return (self.sum(self.centred**2) / (self.size - 1).clamp(min=1)).sqrt()


def whitened(values: Tensor, weights: Tensor | None = None, *, eps: float = 1e-8) -> Tensor:
    """(value - mean) / sqrt(variance + eps) over all of them, float64 [N]; exactly 0 where all are equal.

    `weights` [N] say how many tokens each value stands for (default 1); the variance has the divisor tokens - 1.
    """
    if not len(values) or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    w = torch.ones_like(values) if weights is None else weights.to(values)
    centred = values - (w * values).sum() / w.sum()
    return centred / ((w * centred**2).sum() / (w.sum() - 1).clamp(min=1) + eps).sqrt()


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Each step's reward plus `gamma` times the next one's return. The steps are those of the policy alone: what the
    environment says in between is no step and is not discounted over."""
    out: list[float] = []
    for r in reversed(rewards):
        out.append(r + gamma * (out[-1] if out else 0.0))
    return out[::-1]

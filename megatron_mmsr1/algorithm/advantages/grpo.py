"""Group-relative advantages as in GRPO: each rollout against the others of its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.groups import Groups
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "grpo"
    divide_by_std: bool = Field(default=True, description="divide by the deviation of the group's rewards")
    eps: float = Field(default=1e-6, ge=0, description="added to the deviation")


def group_normalized(
    rewards: Tensor | Sequence[float],
    group_ids: Tensor | Sequence[Hashable],
    *,
    divide_by_std: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """GRPO's advantages (arXiv 2402.03300, section 4.1.2): float32 [N] for N rewards, on the rewards' device.

    a_i = (r_i - mean(r of its group)) / (std(r of its group) + eps). The deviation is the sample's (divisor n - 1), as
    in verl and TRL; a group of one and a group of equal rewards get exactly 0. Without `divide_by_std` the centred
    rewards themselves (Dr.GRPO, arXiv 2503.20783). Groups may lie in any order.

    Raises ValueError if the lengths differ or a reward is not finite: a rollout without a reward belongs in no group.
    """
    g = Groups(rewards, group_ids)
    advantages = g.centred / (g.std + eps) if divide_by_std else g.centred
    # A deviation of 0 belongs to a group without spread, where 0 / 0 may stand without eps.
    return torch.where(g.centred == 0, 0.0, advantages).to(torch.float32)


class Grpo:
    """`group_normalized` under a name."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        s = self.settings
        return group_normalized(rewards, group_ids, divide_by_std=s.divide_by_std, eps=s.eps)


ADVANTAGE = Grpo

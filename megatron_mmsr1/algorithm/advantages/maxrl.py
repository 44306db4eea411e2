"""MaxRL: centred rewards over the group's mean, so that a rare success weighs as in the likelihood of succeeding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.groups import Groups
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError


class Settings(Section):
    name: str = "maxrl"


class MaxRl:
    """a_i = (r_i - mean(r of its group)) / mean(r of its group), 0 where the mean is 0 (maximum-likelihood reinforcement
    learning; prime-rl and SkyRL have the same formula).

    A negative reward raises UsageError: with a negative mean the sign of every advantage would turn.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        g = Groups(rewards, group_ids)
        if bool((g.rewards < 0).any()):
            raise UsageError("algorithm.advantage=maxrl divides by the group's mean reward: no reward may be negative")
        return torch.where(g.mean > 0, g.centred / g.mean, 0.0).to(torch.float32)


ADVANTAGE = MaxRl

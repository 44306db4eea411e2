"""Batch-normalised group advantages, as SenseNova-MARS describes them under BN-GSPO."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_mmsr1.algorithm.advantages.grpo import group_normalized
from megatron_mmsr1.algorithm.groups import whitened
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "mars"
    eps: float = Field(default=1e-6, ge=0, description="added to the deviation of a group's rewards")


class Mars:
    """GRPO's advantage, then (a - mean(a)) / std(a) over all rollouts of the step (divisor N - 1).

    Groups without spread are 0 before the second step; they count in its deviation, so that a step of few useful groups has
    larger advantages in them. (The released training script of MARS does not switch the second step on.)
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        return whitened(group_normalized(rewards, group_ids, eps=self.settings.eps).double()).to(torch.float32)


ADVANTAGE = Mars

"""REINFORCE++ with a baseline: the group's mean is taken off, the deviation is the whole batch's."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.groups import Groups, whitened
from megatron_mmsr1.algorithm.parts import Rollout
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "reinforce_pp_baseline"


class ReinforcePpBaseline:
    """r_i - mean(r of its group), then normalised by mean and deviation over all sampled tokens of the step, so that a long
    rollout counts more (arXiv 2501.03262). The deviation of a prompt is not divided by: easy and hard prompts are
    not weighed up. `estimate` gives the rollouts of one token each.
    """

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        return whitened(Groups(rewards, group_ids).centred).to(torch.float32)

    def per_token(self, rewards: Sequence[float], group_ids: Sequence[Hashable], rollouts: Sequence[Rollout]) -> list[Tensor]:
        lengths = torch.tensor([o.tokens for o in rollouts], dtype=torch.float64)
        values = whitened(Groups(rewards, group_ids).centred, lengths).to(torch.float32)
        return [v.expand(o.tokens) for v, o in zip(values, rollouts, strict=True)]


ADVANTAGE = ReinforcePpBaseline

"""RLOO: each rollout against the mean of the others of its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.groups import Groups
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "rloo"


class Rloo:
    """a_i = r_i - mean(r of the others of its group) = n / (n - 1) * (r_i - mean(r of its group)) (arXiv 2402.14740): the
    baseline does not depend on the rollout itself. 0 in a group of one."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        g = Groups(rewards, group_ids)
        return (g.centred * g.size / (g.size - 1).clamp(min=1)).to(torch.float32)


ADVANTAGE = Rloo

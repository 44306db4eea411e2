"""Dr.GRPO's advantages (arXiv 2503.20783, section 3.2): centred rewards, so that easy and hard prompts are not weighed up."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

from torch import Tensor

from megatron_mmsr1.algorithm.advantages.grpo import group_normalized
from megatron_mmsr1.config.section import Section


class Settings(Section):
    name: str = "dr_grpo"


class DrGrpo:
    """a_i = r_i - mean(r of its group); no division by the deviation."""

    Settings = Settings
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def estimate(self, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable]) -> Tensor:
        return group_normalized(rewards, group_ids, divide_by_std=False)


ADVANTAGE = DrGrpo

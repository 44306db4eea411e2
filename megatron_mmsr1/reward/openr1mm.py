"""Accuracy alone, under the name that users of open-r1's multimodal data (lmms-lab/multimodal-open-r1-8k-verified) know."""

from __future__ import annotations

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.reward.math import accuracy
from megatron_mmsr1.trajectory import Trajectory


class Settings(Section):
    name: str = "openr1mm"


class OpenR1MM(Reward):
    """reward = acc, 0 or 1: the letter of a choice, else the value (`reward/math.py`)."""

    Settings = Settings

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        acc = accuracy(bodies(trajectory), trajectory.golden_answers)
        return {"reward": acc, "acc": acc}


REWARD = OpenR1MM

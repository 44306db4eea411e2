"""Accuracy plus format, from 0 to 2: the second seed's two rewards, added up as open-r1's trainer adds them.

The format is `<think>…</think>\\s*<answer>…</answer>`, the whole turn. Unlike the original's pattern the thoughts may have
several lines.
"""

from __future__ import annotations

import re

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.reward.math import accuracy
from megatron_mmsr1.trajectory import Trajectory

_TURNING = re.compile(r"</think>\s*<answer>")  # linear: no white space is read twice


class Settings(Section):
    name: str = "openr1mm_accuracy_format"
    prefilled: bool = Field(
        default=False, description="the prompt ends with `<think>`, so a turn begins with the thought itself"
    )


class OpenR1MMAccuracyFormat(Reward):
    """reward = acc + format; each 0 or 1, acc as `openr1mm`."""

    Settings = Settings

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        turns = bodies(trajectory)
        acc = accuracy(turns, trajectory.golden_answers)
        form = float(bool(turns) and is_well_formed(turns[-1], prefilled=self.settings.prefilled))
        return {"reward": acc + form, "acc": acc, "format": form}


REWARD = OpenR1MMAccuracyFormat


def is_well_formed(turn: str, *, prefilled: bool = False) -> bool:
    """Whether the turn, but for white space around it, is `<think>.*?</think>\\s*<answer>.*?</answer>`, with a dot that stands
    for newlines too. `prefilled`: the opening `<think>` may be missing."""
    turn = turn.strip()
    if turn.startswith("<think>"):
        turn = turn.removeprefix("<think>")
    elif not prefilled:
        return False
    return turn.endswith("</answer>") and _TURNING.search(turn.removesuffix("</answer>")) is not None

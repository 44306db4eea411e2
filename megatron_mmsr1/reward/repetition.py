"""A penalty for text that repeats itself: the share of its n-grams that have been there before (open-r1 calls it
repetition_penalty; Yeo et al., arXiv 2502.03373, section 4.2, use it against reward hacking by length). For a weighted sum.
"""

from __future__ import annotations

import re

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.trajectory import Trajectory

# A word; of scripts that write no spaces, a character.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)  # the same, three times as fast
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class Settings(Section):
    name: str = "repetition"
    n: int = Field(default=4, gt=0, description="words of an n-gram")
    allowed: float = Field(default=0.2, ge=0, lt=1, description="share of repeated n-grams that costs nothing")


class Repetition(Reward):
    """reward = -max(0, repeated - allowed) / (1 - allowed), in [-1, 0], where repeated = 1 - distinct n-grams / n-grams over
    the model's turns. No n-gram spans two of them."""

    Settings = Settings
    in_process = True

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        share = repeated(bodies(trajectory), self.settings.n)
        allowed = self.settings.allowed
        return {"reward": -max(0.0, share - allowed) / (1 - allowed), "repeated": share}


REWARD = Repetition


def repeated(turns: list[str], n: int) -> float:
    """Share of n-grams that have been there before, in [0, 1); 0 for texts of fewer than n words. No n-gram spans two turns."""
    grams: list[tuple[str, ...]] = []
    for turn in turns:
        words = (_ASCII_WORD if turn.isascii() else _WORD).findall(turn.lower())
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

"""A reward for questions whose answer is a number, an expression or a choice: right, and well formed.

`_expressions` decides on numbers and on expressions in letters: it parses, runs nothing that a model wrote, and is quick for
any text. What it has no grammar for (unions, inequalities, matrices, logarithms) goes to math-verify, which may take as long as
it likes; so this reward runs in a process of its own, which is replaced at the deadline (`rollout/scoring.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward._answers import boxed, choice, extract, is_well_formed
from megatron_mmsr1.reward._expressions import unwrapped, verdict
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.reward.mmsearch import normalize
from megatron_mmsr1.trajectory import Trajectory

TOLERANCE = 1e-4
_WORDS = re.compile(r"[A-Za-z\s.!?']+")


class Settings(Section):
    name: str = "math"
    format_penalty: float = Field(default=0.1, ge=0, le=1, description="the share of the reward that is for the form")
    tolerance: float = Field(
        default=TOLERANCE, ge=0, lt=1, description="relative difference of equal numbers where one is a decimal or a root"
    )


class Math(Reward):
    """reward = (1 - format_penalty) * acc + format_penalty * format; acc and format are 0 or 1."""

    Settings = Settings

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        turns = bodies(trajectory)
        acc = accuracy(turns, trajectory.golden_answers, self.settings.tolerance)
        form = float(bool(turns) and is_well_formed(turns[-1]))
        share = self.settings.format_penalty
        return {"reward": (1 - share) * acc + share * form, "acc": acc, "format": form}


REWARD = Math


def accuracy(turns: Sequence[str], golds: Sequence[str], tolerance: float = TOLERANCE) -> float:
    """1 if the last turn's answer is right, else 0."""
    answer = extract(turns[-1]) if turns else None
    return float(answer is not None and is_right(answer, golds, tolerance))


def is_right(answer: str, golds: Sequence[str], tolerance: float = TOLERANCE) -> bool:
    """Whether the answer is one of the golds: the same words, the same choice, or the same value."""
    return any(_matches(answer, boxed(gold) or gold, tolerance) for gold in golds if gold.strip())


def _matches(answer: str, gold: str, tolerance: float) -> bool:
    letter, meant = choice(gold)
    if letter:
        chosen, said = choice(answer)
        if chosen or not meant:
            return chosen == letter
        gold, answer = meant, said
    said, meant = unwrapped(answer), unwrapped(gold)
    if _WORDS.fullmatch(said) and _WORDS.fullmatch(meant) and normalize(said) == normalize(meant):
        return True
    found = verdict(answer, gold, tolerance)
    if found is None:
        from megatron_mmsr1.reward._math_verify import agree  # sympy takes a second to import

        return agree(answer, gold)
    return found

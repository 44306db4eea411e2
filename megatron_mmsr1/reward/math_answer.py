"""A reward for questions whose answer is a number, an expression or a choice: right, and well formed.

The answer is the inside of the last `<answer>` of the last turn, and of the `\\boxed{}` in it; without an `<answer>`, of the
last `\\boxed{}`. `_expressions.same` says what equality is: it parses, and runs nothing that a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol import strip_end
from megatron_mmsr1.reward._expressions import same, unwrapped
from megatron_mmsr1.reward.base import Reward
from megatron_mmsr1.reward.mmsearch import answer_of, normalize
from megatron_mmsr1.trajectory import Trajectory

# "B", "(B)", "B.", "B. 35", "(B) 35": a choice, and what it stands for.
_CHOICE = re.compile(r"(?:\(([A-Ha-h])\)|([A-Ha-h])(?:[.:)]|(?=$)))\s*(.*)", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z\s.!?']+")
_REASONS = (("<reason>", "</reason>"), ("<think>", "</think>"))


class Settings(Section):
    name: str = "math_answer"
    format_penalty: float = Field(default=0.1, ge=0, le=1, description="the share of the reward that is for the form")
    tolerance: float = Field(
        default=1e-4, ge=0, lt=1, description="relative difference of equal numbers where one is a decimal or a root"
    )


class MathAnswer(Reward):
    """reward = (1 - format_penalty) * acc + format_penalty * format; acc and format are 0 or 1."""

    Settings = Settings
    in_process = True

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        turns = [strip_end(t) for t in trajectory.assistant_texts]
        answer = extract(turns[-1]) if turns else None
        acc = float(answer is not None and is_right(answer, trajectory.golden_answers, self.settings.tolerance))
        form = float(bool(turns) and is_well_formed(turns[-1]))
        share = self.settings.format_penalty
        return {"reward": (1 - share) * acc + share * form, "acc": acc, "format": form}


REWARD = MathAnswer


def extract(turn: str) -> str | None:
    """What a turn answers; None without an `<answer>` or a `\\boxed{}`. Linear time."""
    answer = answer_of(turn)
    if answer is None:
        return boxed(turn)
    inside = boxed(answer)
    return answer.strip() if inside is None else inside


def boxed(text: str) -> str | None:
    """The inside of the last `\\boxed{}` whose braces are closed, else None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for n in range(start, len(text)):
        depth += (text[n] == "{") - (text[n] == "}")
        if not depth:
            return text[start:n].strip()
    return None


def is_right(answer: str, golds: Sequence[str], tolerance: float = 1e-4) -> bool:
    """Whether the answer is one of the golds: the same words, the same choice, or the same value."""
    return any(_matches(answer, boxed(gold) or gold, tolerance) for gold in golds if gold.strip())


def _matches(answer: str, gold: str, tolerance: float) -> bool:
    letter, meant = _choice(gold)
    if letter:
        chosen, said = _choice(answer)
        if chosen or not meant:
            return chosen == letter
        gold, answer = meant, said
    said, meant = unwrapped(answer), unwrapped(gold)
    words = bool(_WORDS.fullmatch(said) and _WORDS.fullmatch(meant))
    return (words and normalize(said) == normalize(meant)) or same(answer, gold, tolerance)


def _choice(text: str) -> tuple[str, str]:
    """(letter, what it stands for) of a choice; ("", the text) of anything else."""
    text = text.strip()
    found = _CHOICE.fullmatch(text.removeprefix("Option ").removeprefix("option "))
    return ((found[1] or found[2]).upper(), found[3].strip()) if found else ("", text)


def is_well_formed(turn: str) -> bool:
    """Whether the turn is its reasoning (`<reason>` or `<think>`, newlines and all), then its one answer, and nothing else."""
    turn = turn.strip()
    for opening, closing in _REASONS:
        if turn.startswith(opening):
            rest = turn[turn.find(closing) + len(closing) :].strip() if closing in turn else ""
            once = all(turn.count(tag) == 1 for tag in (opening, closing, "<answer>", "</answer>"))
            return once and rest.startswith("<answer>") and rest.endswith("</answer>")
    return False

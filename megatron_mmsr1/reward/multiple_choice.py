"""A reward for multiple choice: the letter, the option's text, or both.

The options are read from the question where it lists them ("A. 12", "(B) 35", one after the other); a gold that names both its
letter and its text ("B. 35") is an option too. An answer whose letter and text are of two options is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward._answers import boxed, choice, extract, is_well_formed
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.reward.mmsearch import normalize
from megatron_mmsr1.trajectory import Trajectory

# The mark of an option: at the start of a line or after white space, "A." "A)" "A:" or "(A)", then a space.
_MARK = re.compile(r"(?:^|(?<=\s))(?:\(([A-H])\)|([A-H])[.):])\s")


class Settings(Section):
    name: str = "multiple_choice"
    format_penalty: float = Field(default=0.1, ge=0, le=1, description="the share of the reward that is for the form")


class MultipleChoice(Reward):
    """reward = (1 - format_penalty) * acc + format_penalty * format; acc and format are 0 or 1."""

    Settings = Settings
    in_process = True

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        turns = bodies(trajectory)
        answer = extract(turns[-1]) if turns else None
        right = answer is not None and is_right(answer, trajectory.golden_answers, options(trajectory.question))
        form = float(bool(turns) and is_well_formed(turns[-1]))
        share = self.settings.format_penalty
        return {"reward": (1 - share) * right + share * form, "acc": float(right), "format": form}


REWARD = MultipleChoice


def options(question: str) -> dict[str, str]:
    """Letter -> normalised text of the options that a question lists: at least two, from A on without a gap; else none."""
    found: list[tuple[str, int, int]] = []
    for mark in _MARK.finditer(question):
        letter = mark[1] or mark[2]
        if letter == "A":
            found = []  # the list begins anew: an "A." before was prose
        if letter == "ABCDEFGH"[len(found) : len(found) + 1]:
            found.append((letter, mark.start(), mark.end()))
    if len(found) < 2:
        return {}
    ends = [start for _, start, _ in found[1:]] + [len(question)]
    texts = {letter: _text(question[begin:end]) for (letter, _, begin), end in zip(found, ends, strict=True)}
    last = found[-1][0]  # prose may follow the last one, a line below
    texts[last] = _text(question[found[-1][2] :].strip().partition("\n")[0])
    return texts


def is_right(answer: str, golds: Sequence[str], listed: dict[str, str]) -> bool:
    """Whether the answer is the choice that any gold names. `listed`: the options as `options` gives them, or none."""
    said = choice(answer)
    for gold in golds:
        if not gold.strip():
            continue
        letter, text = choice(boxed(gold) or gold)
        known = dict(listed)
        if letter and text:
            known[letter] = _text(text)
        elif not letter:  # a gold in words: its letter is that of the option that says so
            letter = next((k for k, v in known.items() if v == _text(text)), "")
        if _same(said, letter, _text(text) or known.get(letter, ""), known):
            return True
    return False


def _same(said: tuple[str, str], letter: str, text: str, known: dict[str, str]) -> bool:
    chosen, words = said[0], _text(said[1])
    if chosen:
        return chosen == letter and (not words or known.get(chosen, words) == words)
    return bool(words) and words == text


def _text(words: str) -> str:
    """As the answers of `mmsearch` are compared; what has nothing left of it then ("±", "-5" against "5") as it stands."""
    words = words.strip().rstrip(".;,")
    return normalize(words) if re.fullmatch(r"[\w\s'’-]*[A-Za-z][\w\s'’.,-]*", words) else " ".join(words.lower().split())

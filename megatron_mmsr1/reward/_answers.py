"""What a turn answers, which choice a text names, and whether its tags are in order. Linear time in any text."""

from __future__ import annotations

import re

from megatron_mmsr1.reward.mmsearch import answer_of

_REASONS = (("<reason>", "</reason>"), ("<think>", "</think>"))
# "B", "(B)", "B.", "B. 35", "(B) 35": a choice, and what it stands for.
_CHOICE = re.compile(r"(?:\(([A-Ha-h])\)|([A-Ha-h])(?:[.:)]|(?=$)))\s*(.*)", re.DOTALL)


def extract(turn: str) -> str | None:
    """What a turn answers: the inside of its last `<answer>`, and of the `\\boxed{}` in it; without an `<answer>`, of its last
    `\\boxed{}`. None without either."""
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


def choice(text: str) -> tuple[str, str]:
    """(letter A to H, what it stands for) of a choice; ("", the text) of anything else."""
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

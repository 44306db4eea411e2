"""Tasks of small arithmetic, and how a problem and its solution are worded.

The operands stand in the picture alone: a problem says only that a result is wanted. Each of the 300 tasks belongs to one side,
training or held-out, by the world's seed; held-out problems have a phrasing of their own too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

OPERATORS = ("+", "-", "x")
DIGITS = range(10)
# Three phrasings that train, then the one that is held out: its words are those of the others.
PHRASINGS = (
    "what is the result ?",
    "tell me the result .",
    "which result has this ?",
    "what result has this ?",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Two operands from 0 to 9 and what to do with them."""

    left: int
    operator: str
    right: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}"

    @property
    def value(self) -> int:
        return {"+": self.left + self.right, "-": self.left - self.right, "x": self.left * self.right}[self.operator]


TASKS = tuple(Task(left, operator, right) for operator in OPERATORS for left in DIGITS for right in DIGITS)


def tasks_of(split: str, heldout_share: float, seed: int) -> list[Task]:
    """The tasks of `train` or `heldout`, shuffled. Each operator has the same number of them; no task is in both."""
    out: list[Task] = []
    for operator in OPERATORS:
        rng = random.Random(f"maths/split/{operator}/{seed}")
        own = [t for t in TASKS if t.operator == operator]
        rng.shuffle(own)
        cut = round(len(own) * heldout_share)
        out += own[:cut] if split == "heldout" else own[cut:]
    random.Random(f"maths/tasks/{split}/{seed}").shuffle(out)
    return out


def phrasings(split: str) -> tuple[str, ...]:
    return PHRASINGS[-1:] if split == "heldout" else PHRASINGS[:-1]


def solution(task: Task) -> str:
    """The verified solution: what the picture shows, read aloud, then the result."""
    return f"<think>{task}</think><answer>{task.value}</answer>"

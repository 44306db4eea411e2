"""Which of a run's checkpoints may be removed: a pure function of what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """Kept are the `last` ones, those whose step `every` divides (0: none), those younger than `hours`, and the `best`."""

    last: int
    every: int = 0
    hours: float = 0.0
    best: int = 0


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint. `hours`: since it was written. `score`: more is better; None where nobody told."""

    name: str
    step: int
    hours: float
    score: float | None = None


def removable(found: Sequence[Saved], rule: Rule, *, current: int, latest: str) -> list[str]:
    """The names that no part of the rule keeps, oldest step first; never the checkpoint of step `current`, which was just
    written, nor the one that is named `latest`.

    What comes after `current` stays: a run that was set back to an earlier checkpoint has later ones, which are not ours to
    judge. Of equal scores the later step is better.
    """
    before = sorted((s for s in found if s.step < current), key=lambda s: s.step)
    kept = {latest} | {s.name for s in before[max(0, len(before) - (rule.last - 1)) :]}
    kept |= {s.name for s in before if (rule.every and s.step % rule.every == 0) or s.hours < rule.hours}
    told = sorted((s.score, s.step, s.name) for s in found if s.score is not None)
    kept |= {name for _, _, name in told[max(0, len(told) - rule.best) :]}
    return [s.name for s in before if s.name not in kept]

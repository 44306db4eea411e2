"""A curriculum: the easiest rows at first, and more of the harder ones with every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """`places`: of each row, its place when all are sorted from easy to hard. The easiest `start` share is drawn from in step
    0, all rows from step `steps` on, and a share in between that grows linearly."""

    places: Sequence[int]
    start: float
    steps: int

    def rows(self, step: int) -> int:
        """How many rows are open in a step; at least one."""
        share = min(1.0, self.start + (1 - self.start) * step / self.steps)
        return max(1, round(share * len(self.places)))


def places(difficulties: Sequence[float]) -> list[int]:
    """Each row's place from easy to hard; rows as hard as each other in their own order."""
    out = [0] * len(difficulties)
    for place, row in enumerate(sorted(range(len(difficulties)), key=difficulties.__getitem__)):
        out[row] = place
    return out

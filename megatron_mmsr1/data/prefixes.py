"""Token sequences as a forest of runs, so that what several of them begin with stands once.

A group's rollouts begin with one prompt, all prompts with one system message, and rollouts that said the same in a first turn
read the same observation after it. Each such beginning is a run of tokens; what follows it stands below it. A token attends to
the runs above its own whole and to its own as far as itself, which is what it attends to in its sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SHORTEST = 16  # tokens of a shared run: a shorter one costs more in kernel calls than it saves


@dataclass(frozen=True)
class Run:
    """Tokens [start, end) of `member`, and of every sequence below it. `parent`: the index of the run above it; -1: none."""

    member: int
    start: int
    end: int
    parent: int


@dataclass(frozen=True)
class Forest:
    """`runs` in depth-first order, so that those below a run follow it directly; `last[i]`: the run that sequence i ends in."""

    runs: list[Run]
    last: list[int]

    def rows(self, multiple: int = 1) -> list[np.ndarray]:
        """The place of each token of each sequence, int64, where the runs lie end to end, each padded to this multiple."""
        lengths = [r.end - r.start for r in self.runs]
        at = np.cumsum([0, *(n + -n % multiple for n in lengths)])
        places: list[np.ndarray] = []  # of a run: those of its sequences up to its end
        for r, begin, n in zip(self.runs, at, lengths, strict=False):
            own = np.arange(begin, begin + n, dtype=np.int64)
            places.append(np.concatenate([places[r.parent], own]) if r.parent >= 0 else own)
        return [places[i] for i in self.last]


def forest(keys: Sequence[np.ndarray], *, shared: bool, shortest: int = SHORTEST) -> Forest:
    """The runs of sequences that are not empty, given a number a token: equal numbers are equal tokens (of equal pictures).
    Deterministic. Not `shared`: a run each, in their order."""
    if not shared:
        return Forest([Run(i, 0, len(k), -1) for i, k in enumerate(keys)], list(range(len(keys))))
    values = [np.ascontiguousarray(k, dtype=np.int64) for k in keys]
    # Any order in which sequences of one beginning are neighbours; of equal ones the first leads.
    order = sorted(range(len(values)), key=lambda i: (values[i].tobytes(), i))
    common = [0, *(_common(values[a], values[b]) for a, b in pairwise(order))]
    runs: list[Run] = []
    last = [-1] * len(values)
    # Of each open piece: the sequences order[low:high], which agree as far as `at`, where the run `parent` ends.
    todo = [(0, len(order), 0, -1)] if order else []
    while todo:
        low, high, at, parent = todo.pop()
        end = len(values[order[low]]) if high - low == 1 else min(common[low + 1 : high])
        if end - at >= (1 if high - low == 1 else shortest):
            runs.append(Run(order[low], at, end, parent))
            at, parent = end, len(runs) - 1
        if high - low == 1:
            last[order[low]] = parent
            continue
        cuts = [low, *(i for i in range(low + 1, high) if common[i] - at < shortest), high]
        pieces = [(a, b, at, parent) for a, b in pairwise(cuts)]
        todo += reversed(pieces)  # the last is taken first: depth first
    return Forest(runs, last)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n

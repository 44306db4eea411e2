"""Which data-parallel rank and micro-batch each trajectory of a step goes to: by what is computed for it, groups together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_mmsr1.data.packing import balance, pack
from megatron_mmsr1.data.prefixes import SHORTEST
from megatron_mmsr1.trajectory import Trajectory

EVEN = 1.02  # the fullest rank's work over the mean, from which a group is split between ranks


@dataclass(frozen=True)
class Size:
    """A trajectory's tokens, and the first of them that its `group` has in common and that a micro-batch holds once; its
    pictures by content, with the tokens of each."""

    tokens: int
    prompt: int = 0
    group: str = ""
    pictures: tuple[tuple[str, int], ...] = ()


class Rates(NamedTuple):
    """What the cost of a trajectory is told from: the model's `hidden` size, and what a token of a picture costs in the tower
    beside a token of text in the decoder (`cluster.stages.picture_cost`)."""

    hidden: int
    picture: float = 0.0


def sizes(trajectories: Sequence[Trajectory], *, shared: bool, merge: int) -> list[Size]:
    """Of outlines too. Not `shared`: no token counts as anybody else's. `merge`: of the picture rule."""
    found: list[Size] = []
    for t in trajectories:
        prompt = t.turns[0].end if shared and t.turns and t.turns[0].role == "prompt" else 0
        pictures = tuple((i.sha256, i.tokens(merge)) for i in t.images)
        found.append(Size(len(t), prompt, t.group_id, pictures) if prompt >= SHORTEST else Size(len(t), pictures=pictures))
    return found


class _Piece(NamedTuple):
    """Trajectories that stay together: those of a group, as far as a micro-batch holds them, or one alone."""

    members: list[int]
    tokens: int
    cost: float


def plan(items: Sequence[Size], dp_size: int, budget: int, rates: Rates, multiple: int = 1) -> list[list[list[int]]]:
    """Indices by data-parallel rank and micro-batch, the same on every rank that asks, every rank with as many micro-batches,
    a `multiple` of a number.

    A group stays in one micro-batch as far as the `budget` of tokens and the balance of ranks allow. A rank with fewer packs
    than the fullest one splits its largest; one with fewer sequences than that gets empty ones, so that pipelines and
    collectives stay in step.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, x in enumerate(items):
        groups.setdefault((x.group, x.prompt) if x.prompt else (str(i), 0), []).append(i)
    pieces: list[_Piece] = []
    for (_, prompt), members in groups.items():
        whole = _piece(members, items, rates)
        if whole.tokens <= budget or len(members) == 1:
            pieces.append(whole)
            continue
        room, own = budget - prompt, [items[i].tokens - prompt for i in members]
        together = pack(own, room) if room > 0 else [[k] for k in range(len(own))]
        pieces += [_piece([members[k] for k in part], items, rates) for part in together]
    packs = [
        [[m for j in p for m in mine[j].members] for p in pack([x.tokens for x in mine], budget)]
        for mine in _spread(pieces, items, dp_size, rates)
    ]
    count = max(1, *(len(p) for p in packs))
    count += -count % multiple
    return [_split_to(p, count) for p in packs]


def _piece(members: list[int], items: Sequence[Size], rates: Rates) -> _Piece:
    """Matrix multiplications grow with the tokens n, attention with the pairs of tokens: n + pairs / 3h is a layer's cost up to
    a factor (n (1 + n / 6h) for one sequence). The tower adds each picture once."""
    tokens = prompt = items[members[0]].prompt
    pairs = prompt * prompt / 2
    for i in members:
        n = items[i].tokens - prompt
        tokens += n
        pairs += n * (prompt + n / 2)
    cost = tokens + pairs / (3 * rates.hidden)
    if rates.picture:
        cost += rates.picture * sum({sha: n for i in members for sha, n in items[i].pictures}.values())
    return _Piece(members, tokens, cost)


def _spread(pieces: list[_Piece], items: Sequence[Size], dp_size: int, rates: Rates) -> list[list[_Piece]]:
    """The pieces of each rank. While ranks are uneven groups are split smaller, which costs a prompt more each time: the
    split with the least work for the fullest rank is taken, at last that of every trajectory alone."""
    best: list[list[_Piece]] = []
    least, mean = float("inf"), sum(p.cost for p in pieces) / dp_size
    for part in (float("inf"), 1.0, 0.5, 0.25, 0.125, 0.0):
        cut = [h for p in pieces for h in _split(p, part * mean, items, rates)]
        ranks = [[cut[i] for i in mine] for mine in balance([p.cost for p in cut], dp_size)]
        loads = [sum(p.cost for p in mine) for mine in ranks]
        if max(loads) < least * (1 - 1e-9):
            best, least = ranks, max(loads)
        if max(loads) <= EVEN * sum(loads) / dp_size or len(cut) == len(items):
            break
    return best


def _split(p: _Piece, most: float, items: Sequence[Size], rates: Rates) -> list[_Piece]:
    """Halves of halves, until none costs more than `most`, or is one trajectory."""
    if p.cost <= most or len(p.members) == 1:
        return [p]
    half = len(p.members) // 2
    return [x for m in (p.members[:half], p.members[half:]) for x in _split(_piece(m, items, rates), most, items, rates)]


def update_parts(n: int, updates: int) -> list[list[int]]:
    """The indices of each of a step's optimizer updates; none is empty."""
    return [p.tolist() for p in np.array_split(np.arange(n), updates) if len(p)]


def owners(items: Sequence[Size], updates: int, dp_size: int, budget: int, rates: Rates) -> list[int]:
    """The data-parallel rank that `plan` gives each trajectory to, over all of the step's updates."""
    out = [-1] * len(items)
    for part in update_parts(len(items), updates):
        for rank, packs in enumerate(plan([items[i] for i in part], dp_size, budget, rates)):
            for members in packs:
                for m in members:
                    out[part[m]] = rank
    return out


def _split_to(packs: list[list[int]], count: int) -> list[list[int]]:
    while len(packs) < count:
        largest = max(range(len(packs)), key=lambda i: len(packs[i]), default=-1)
        if largest < 0 or len(packs[largest]) < 2:
            packs.append([])
            continue
        members = packs.pop(largest)
        half = len(members) // 2  # neighbours are of one group
        packs += [members[:half], members[half:]]
    return packs

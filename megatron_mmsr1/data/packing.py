"""Sequences into micro-batches of a token budget, and work over ranks. Both are deterministic."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in bins whose sums stay within `budget`; an oversize sequence gets a bin of its own.

    Best-fit decreasing, which needs at most 11/9 of the optimal number of bins plus one (Johnson 1974). Bins come in
    the order they were opened, indices ascending within a bin. Raises ValueError for a negative length or a budget
    below 1.
    """
    if budget < 1 or any(n < 0 for n in lengths):
        raise ValueError(f"budget {budget} must be positive and no length negative")
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens -> bins with exactly that many, last opened last
    sizes: list[int] = []  # the keys of `room`, ascending: one binary search finds the tightest fit
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        n = lengths[i]
        at = bisect_left(sizes, n)
        if at == len(sizes):
            bins.append([i])
            target, free = len(bins) - 1, budget - n
        else:
            free = sizes[at]
            target = room[free].pop()
            if not room[free]:
                del room[free], sizes[at]
            bins[target].append(i)
            free -= n
        if free < 0:
            continue
        if free not in room:
            room[free] = []
            insort(sizes, free)
        room[free].append(target)
    return [sorted(b) for b in bins]


def balance(costs: Sequence[float], k: int) -> list[list[int]]:
    """Indices of `costs` in `k` lists whose sums are as equal as a quick heuristic makes them.

    Largest first onto the lightest list (Graham 1969: at most 4/3 of the optimum), then moves and swaps between the
    heaviest list and the others for as long as they lower the maximum, at most once an item. No list stays empty while
    another holds two. Raises ValueError for k < 1 or a negative cost.
    """
    if k < 1 or any(not c >= 0 for c in costs):
        raise ValueError(f"k={k} must be positive and no cost negative")
    lists: list[list[int]] = [[] for _ in range(k)]
    heap = [(0.0, 0, j) for j in range(k)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, count, j = heapq.heappop(heap)
        lists[j].append(i)
        heapq.heappush(heap, (load + costs[i], count + 1, j))
    loads = [sum(costs[i] for i in members) for members in lists]
    for _ in range(len(costs)):
        if not _improve(costs, lists, loads):
            break
    return [sorted(members) for members in lists]


def _improve(costs: Sequence[float], lists: list[list[int]], loads: list[float]) -> bool:
    """One move or swap out of the heaviest list, the best over all partners. False if none helps."""
    heavy = max(range(len(loads)), key=lambda j: (loads[j], -j))
    best: tuple[float, int, int, int | None] | None = None
    for light in range(len(loads)):
        gap = loads[heavy] - loads[light]
        if light == heavy or gap <= 0:
            continue
        ordered = sorted(lists[light], key=lambda i: (costs[i], i))
        keys = [costs[i] for i in ordered]
        for i in lists[heavy]:
            # Moving a difference d leaves max(load - d, light + d), smallest at d = gap / 2.
            at = bisect_left(keys, costs[i] - gap / 2)
            for partner in [*ordered[max(at - 1, 0) : at + 1], None]:
                d = costs[i] - (0.0 if partner is None else costs[partner])
                peak = max(loads[heavy] - d, loads[light] + d)
                if 0 < d < gap and len(lists[heavy]) > (partner is None) and (best is None or peak < best[0]):
                    best = (peak, light, i, partner)
    # Without a margin, rounding could make two lists trade the same items for ever.
    if best is None or best[0] >= loads[heavy] * (1 - 1e-12):
        return False
    _, light, i, partner = best
    lists[heavy].remove(i)
    lists[light].append(i)
    if partner is not None:
        lists[light].remove(partner)
        lists[heavy].append(partner)
    for j in (heavy, light):
        loads[j] = sum(costs[i] for i in lists[j])
    return True

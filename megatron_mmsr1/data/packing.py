"""Sequences into micro-batches of a token budget, and work over ranks. Both are deterministic."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

EVEN = 1.002  # the heaviest list over the mean that is even enough


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in bins whose sums stay within `budget`; an oversize sequence gets a bin of its own.

    Best-fit decreasing, which needs at most 11/9 of the optimal number of bins plus one (Johnson 1974). Bins come in
    the order they were opened, indices ascending within a bin. Raises ValueError for a negative length or a budget
    below 1.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if budget < 1 or (sizes < 0).any():
        raise ValueError(f"budget {budget} must be positive and no length negative")
    bins: list[list[int]] = []
    least, radix = int(sizes.min()) if len(sizes) else 0, len(sizes) + 1
    open_bins: list[int] = []  # free tokens * radix + the bin, ascending: one binary search finds the tightest fit
    order = np.argsort(-sizes, kind="stable")
    for i, n in zip(order.tolist(), sizes[order].tolist(), strict=True):
        at = bisect_left(open_bins, n * radix)
        if at == len(open_bins):
            bins.append([i])
            target, free = len(bins) - 1, budget - n
        else:
            free, target = divmod(open_bins.pop(at), radix)
            bins[target].append(i)
            free -= n
        if free >= least:
            insort(open_bins, free * radix + target)
    return [sorted(b) for b in bins]


def balance(costs: Sequence[float], k: int) -> list[list[int]]:
    """Indices of `costs` in `k` lists whose sums are as equal as a quick heuristic makes them.

    Largest first onto the lightest list (Graham 1969: at most 4/3 of the optimum), then moves and swaps between the
    heaviest list and a lighter one, until the heaviest is within `EVEN` of the mean or none of them helps. No list stays empty
    while another holds two. Raises ValueError for k < 1 or a negative cost.
    """
    values = np.asarray(costs, dtype=np.float64)
    if k < 1 or not (values >= 0).all():
        raise ValueError(f"k={k} must be positive and no cost negative")
    order = np.argsort(-values, kind="stable")
    lists: list[list[int]] = [[] for _ in range(k)]
    heap = [(0.0, 0, j) for j in range(k)]
    for i, cost in zip(order.tolist(), values[order].tolist(), strict=True):
        load, count, j = heap[0]
        lists[j].append(i)
        heapq.heapreplace(heap, (load + cost, count + 1, j))
    _even_out(values, lists)
    return [sorted(members) for members in lists]


def _even_out(costs: np.ndarray, lists: list[list[int]]) -> None:
    """Moves and swaps out of the heaviest of `lists`, which are changed."""
    own = [costs[x] for x in lists]
    loads = np.array([x.sum() for x in own])
    enough = loads.mean() * EVEN
    for _ in range(len(costs)):
        heavy = int(loads.argmax())
        if loads[heavy] <= enough or not any(_exchange(own, lists, loads, heavy, int(j)) for j in loads.argsort(kind="stable")):
            return


def _exchange(own: list[np.ndarray], lists: list[list[int]], loads: np.ndarray, heavy: int, light: int) -> bool:
    """The best move or swap between these two. False if none makes the heavier of them lighter."""
    gap = loads[heavy] - loads[light]
    if light == heavy or gap <= 0:
        return False
    # A move is a swap with nothing. Moving a difference d leaves the larger of load - d and light + d: smallest at d = gap / 2.
    partners = np.append(own[light], 0.0) if len(own[heavy]) > 1 else own[light]
    if not len(partners):
        return False
    d = own[heavy][:, None] - partners
    off = np.abs(d - gap / 2)
    a, b = divmod(int(off.argmin()), len(partners))
    # Without a margin, rounding could make two lists trade the same items for ever.
    if off[a, b] >= gap / 2 - loads[heavy] * 1e-12:
        return False
    given, taken = lists[heavy].pop(a), lists[light].pop(b) if b < len(lists[light]) else None
    lists[light].append(given)
    own[light] = np.append(np.delete(own[light], b) if taken is not None else own[light], own[heavy][a])
    own[heavy] = np.delete(own[heavy], a)
    if taken is not None:
        lists[heavy].append(taken)
        own[heavy] = np.append(own[heavy], partners[b])
    for j in (heavy, light):
        loads[j] = own[j].sum()
    return True

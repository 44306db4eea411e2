"""Packing within a budget, balancing over ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data.packing import balance, pack

lengths = st.lists(st.integers(0, 40), max_size=60)
costs = st.lists(st.floats(0, 1e6), max_size=40)


@given(lengths, st.integers(1, 40))
def test_every_item_once_and_within_budget(items: list[int], budget: int) -> None:
    bins = pack(items, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(items)))
    for b in bins:
        assert b == sorted(b)
        assert sum(items[i] for i in b) <= budget or len(b) == 1


@given(lengths, st.integers(1, 40))
def test_no_two_bins_fit_into_one(items: list[int], budget: int) -> None:
    loads = sorted(sum(items[i] for i in b) for b in pack(items, budget))
    if len(loads) > 1:
        assert loads[0] + loads[1] > budget


@given(lengths, st.integers(1, 40))
def test_within_the_proven_bound(items: list[int], budget: int) -> None:
    fitting = [min(n, budget) for n in items]
    lower = -(-sum(fitting) // budget)  # no packing does better than the total volume
    # Against the volume, not the optimum: any two bins hold more than one budget, so at most twice as many and one.
    assert len(pack(fitting, budget)) <= 2 * lower + 1


def test_golden_packings() -> None:
    # Decreasing 7 6 4 3 into 10: 7|., 6|., 4 fits best beside 6 (room 4, not 3), 3 beside 7: two full bins.
    assert pack([3, 4, 6, 7], 10) == [[0, 3], [1, 2]]
    # An oversize item stands alone, and does not swallow the small ones.
    assert pack([12, 1, 9], 10) == [[0], [1, 2]]
    assert pack([], 10) == []
    assert pack([0, 0], 10) == [[0, 1]]


@pytest.mark.parametrize(("items", "budget"), [([1], 0), ([-1], 5)])
def test_nonsense_is_refused(items: list[int], budget: int) -> None:
    with pytest.raises(ValueError, match="budget"):
        pack(items, budget)


@given(costs, st.integers(1, 9))
def test_balance_is_a_partition_and_deterministic(items: list[float], k: int) -> None:
    lists = balance(items, k)
    assert len(lists) == k
    assert sorted(i for part in lists for i in part) == list(range(len(items)))
    assert lists == balance(items, k)


@given(costs, st.integers(1, 9))
def test_balance_keeps_grahams_bound_and_leaves_none_idle(items: list[float], k: int) -> None:
    lists = balance(items, k)
    peak = max(sum(items[i] for i in part) for part in lists)
    assert peak <= sum(items) / k + max(items, default=0.0) + 1e-6 * sum(items)
    if len(items) >= k:
        assert all(lists)


def test_swaps_beat_largest_first() -> None:
    # Largest first gives 3+2+2 | 3+2 = 7 | 5; the optimum 3+3 | 2+2+2 = 6 | 6 needs one swap.
    lists = balance([3, 3, 2, 2, 2], 2)
    assert [sum([3, 3, 2, 2, 2][i] for i in part) for part in lists] == [6, 6]


def test_balance_refuses_nonsense() -> None:
    for bad, k in (([1.0], 0), ([-1.0], 2), ([float("nan")], 2)):
        with pytest.raises(ValueError, match="cost"):
            balance(bad, k)

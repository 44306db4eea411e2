"""Which rank and micro-batch a trajectory goes to: every one once, within the budget, groups together, ranks even."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.data.shares import EVEN, Rates, Size, owners, plan

GROUPS = st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(1, 30), min_size=1, max_size=8)), min_size=1, max_size=12)


def sized(groups: list[tuple[int, list[int]]]) -> list[Size]:
    return [Size(prompt + n, prompt, f"g{g}") for g, (prompt, own) in enumerate(groups) for n in own]


def computed(items: list[Size], members: list[int]) -> int:
    prompts = {(items[i].group, items[i].prompt) for i in members}
    return sum(items[i].tokens - items[i].prompt for i in members) + sum(p for _, p in prompts)


@given(GROUPS, st.integers(1, 4))
def test_every_trajectory_once_and_within_the_budget(groups: list[tuple[int, list[int]]], ranks: int) -> None:
    items = sized(groups)
    found = plan(items, ranks, 100, Rates(64))
    assert len(found) == ranks and len({len(r) for r in found}) == 1
    assert sorted(i for r in found for p in r for i in p) == list(range(len(items)))
    assert all(computed(items, p) <= 100 or len(p) == 1 for r in found for p in r)
    assert found == plan(items, ranks, 100, Rates(64))
    of = owners(items, 1, ranks, 100, Rates(64))
    assert [of[i] for r in found for p in r for i in p] == [k for k, r in enumerate(found) for p in r for _ in p]


def test_a_group_that_fits_is_not_split_on_one_rank() -> None:
    """Three groups of 40 + 4 x 10 = 80 tokens into micro-batches of 100: three, where 12 x 50 tokens alone take six."""
    items = sized([(40, [10] * 4)] * 3)
    assert plan(items, 1, 100, Rates(64)) == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]
    alone = [Size(i.tokens) for i in items]
    assert len(plan(alone, 1, 100, Rates(64))[0]) == 6


def test_groups_are_split_where_ranks_would_be_uneven() -> None:
    """One group over two ranks: half each, though both compute its prompt. Eight equal groups over two: none is split."""
    one = plan(sized([(40, [30] * 4)]), 2, 1000, Rates(64))
    assert [len(p) for rank in one for p in rank] == [2, 2]
    eight = plan(sized([(40, [30] * 4)] * 8), 2, 1000, Rates(64))
    assert all(len({i // 4 for i in p}) * 4 == len(p) for rank in eight for p in rank)


@given(GROUPS, st.integers(1, 4))
def test_no_rank_computes_more_than_without_sharing(groups: list[tuple[int, list[int]]], ranks: int) -> None:
    items = sized(groups)

    def fullest(found: list[list[list[int]]], items: list[Size]) -> int:
        return max(sum(computed(items, p) for p in rank) for rank in found)

    alone = [Size(i.tokens, 0, str(n)) for n, i in enumerate(items)]
    wide = Rates(10**9)  # so that tokens are the whole cost
    assert fullest(plan(items, ranks, 10**6, wide), items) <= EVEN * fullest(plan(alone, ranks, 10**6, wide), alone)


def test_pictures_count_once_a_group_and_are_spread_like_text() -> None:
    """Four rollouts with 600 tokens of pictures each and eight without, all of 100 tokens: at a token of text for a token of a
    picture two ranks get two of the four. A group has its picture in common, and costs it once: it stays whole beside four
    others of as much."""
    loose = [Size(100, pictures=((f"p{i}", 600),)) for i in range(4)] + [Size(100)] * 8
    found = plan(loose, 2, 10_000, Rates(10**9, 1.0))
    assert [sum(i < 4 for p in rank for i in p) for rank in found] == [2, 2]
    group = [Size(100, 20, "g", (("p", 600),))] * 4
    others = [Size(235, pictures=((f"q{i}", 5),)) for i in range(4)]
    ranks = plan([*group, *others], 2, 10_000, Rates(10**9, 1.0))
    assert sorted(sorted(i for p in rank for i in p) for rank in ranks) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    blind = plan([*group, *others], 2, 10_000, Rates(10**9))
    assert sorted(sorted(i for p in rank for i in p) for rank in blind) != [[0, 1, 2, 3], [4, 5, 6, 7]]

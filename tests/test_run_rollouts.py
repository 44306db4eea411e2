"""Which trajectories a step trains on: what each leader rolls out, and which dump is used again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.run.rollouts import share


@given(st.lists(st.integers(0, 5), min_size=1, max_size=24), st.integers(1, 4))
def test_groups_are_distinct_over_all_leaders(rows: list[int], dp_size: int) -> None:
    """A step that crosses an epoch's border may hold a row twice: (row, copy) names one group on one leader only."""
    rows = rows[: len(rows) // dp_size * dp_size]
    shares = [share(rows, rank, dp_size) for rank in range(dp_size)]
    assert [i for mine, _ in shares for i in mine] == rows
    groups = [pair for mine, copies in shares for pair in zip(mine, copies, strict=True)]
    assert len(set(groups)) == len(groups)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=24), st.sampled_from([1, 2, 4]))
def test_groups_do_not_depend_on_how_many_leaders_there_are(rows: list[int], dp_size: int) -> None:
    """So that a run resumed with other parallelism draws the same samples: their seeds come from (row, copy)."""
    rows = rows[: len(rows) // dp_size * dp_size]
    one, copies = share(rows, 0, 1)
    many = [pair for rank in range(dp_size) for pair in zip(*share(rows, rank, dp_size), strict=True)]
    assert many == list(zip(one, copies, strict=True))
